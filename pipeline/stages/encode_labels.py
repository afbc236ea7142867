"""Stage 2: the frozen backbone reads each label's hypothesis once."""

import logging
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.adapter.label_states import NAMES_FILE, LabelStates, read_hypotheses
from pipeline.backbone.loading import weights_fingerprint
from pipeline.config import RunConfig
from pipeline.core.artefact import sha256_of
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir, read_json
from pipeline.data.hypotheses import encode_hypotheses, hypotheses
from pipeline.data.tokenizer import load_tokenizer, special_texts, tokenizer_fingerprint
from pipeline.distributed.ranks import Ranks
from pipeline.engine.models import load_frozen, prepare_inference, release
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start

log = logging.getLogger(__name__)


def encode_labels(config: RunConfig) -> LabelStates:
    """Makes labels/ in the run directory, or finds it current. Raises UserError where data/ is not current."""
    accelerator, ranks = start(config)
    names = ranks.on_main(lambda: current_data(config))["labels"]
    tokenizer = load_tokenizer(config.backbone, special_tokens=config.data.special_tokens)
    words = hypotheses(names, config.labels)
    wanted = label_fingerprint(config, ranks, tokenizer, names, words)
    folder = config.run_dir.labels
    found = _found(folder, wanted)
    if found is not None:
        return found
    input_ids, mask = encode_hypotheses(tokenizer, words, config.data.max_length)
    backbone = prepare_inference(accelerator, load_frozen(accelerator, ranks, config.backbone), config.backbone.dtype)
    states = LabelStates(names, words, _read(accelerator, backbone, input_ids, mask), mask, wanted)
    release(accelerator, backbone)
    ranks.on_main(lambda: _write(states, folder))
    log.info("encode-labels: %d labels, %d tokens each, in %s", len(names), states.prompt_tokens, folder)
    return states


def current_label_states(config: RunConfig, ranks: Ranks) -> LabelStates:
    """The label states for training and evaluation. Raises UserError where they were made from something else.

    Collective.
    """
    states = LabelStates.load(config.run_dir.labels)
    tokenizer = load_tokenizer(config.backbone)
    names = read_json(config.run_dir.manifest_file)["labels"]
    wanted = label_fingerprint(config, ranks, tokenizer, names, hypotheses(names, config.labels))
    changed = states.changes(wanted)
    if changed:
        raise UserError(f"'{config.run_dir.labels}' does not fit: {'; '.join(changed)}; run encode-labels again")
    return states


def label_fingerprint(
    config: RunConfig, ranks: Ranks, tokenizer: PreTrainedTokenizerBase, names: list[str], words: list[str]
) -> dict[str, str]:
    """Everything the label states depend on, part by part. Collective."""
    backbone = config.backbone
    special = any(token in word for token in special_texts(tokenizer) for word in words)
    return {
        "backbone": backbone.name_or_path,
        "backbone.revision": str(backbone.revision),
        "backbone.dtype": backbone.dtype,
        "backbone.quantization": backbone.quantization,
        **weights_fingerprint(backbone, ranks),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "labels": sha256_of(*names),
        "hypotheses": sha256_of(*words),
        "data.max_length": str(config.data.max_length),
        # Only where it matters, so that older label states stay current.
        **({"data.special_tokens": str(config.data.special_tokens)} if special else {}),
    }


def _found(folder: Path, wanted: dict[str, str]) -> LabelStates | None:
    """The label states that are there, if they are whole and made from what is wanted."""
    if not (folder / NAMES_FILE).is_file():
        return None
    try:
        states = LabelStates.load(folder)
    except UserError as error:
        log.warning("encode-labels: made again, since %s", error)
        return None
    changed = states.changes(wanted)
    if changed:
        log.info("encode-labels: %s is stale (%s), made again", folder, "; ".join(changed))
        return None
    log.info("encode-labels: %s is current", folder)
    return states


def _read(accelerator: Accelerator, backbone: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    return read_hypotheses(backbone, input_ids.to(accelerator.device), mask.to(accelerator.device))


def _write(states: LabelStates, folder: Path) -> None:
    with atomic_dir(folder, sums=True) as temporary:
        states.save(temporary)
