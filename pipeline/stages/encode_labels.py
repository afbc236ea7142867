"""Stage 2: the frozen backbone reads each label's hypothesis once."""

import logging
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.adapter.label_states import (
    ALL_IN_ONE_PART,
    NAMES_FILE,
    START_PART,
    WEIGHTS_OF_HYPOTHESES,
    LabelStates,
    label_artefact,
    read_hypotheses,
)
from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.check import check_reading
from pipeline.backbone.facts import TESTED, Form
from pipeline.backbone.verdict import CHECK_PART
from pipeline.config import RunConfig
from pipeline.core.artefact import FORMAT, sha256_of
from pipeline.core.errors import some
from pipeline.core.files import atomic_dir
from pipeline.core.run_dir import RunDir
from pipeline.core.templates import has_field
from pipeline.data.config import DataConfig, LabelsConfig, weighted
from pipeline.data.hypotheses import Hypotheses, HypothesisTokens, all_in_one, hypotheses
from pipeline.data.texts import TextEncoder
from pipeline.data.tokenizer import special_texts
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of, text_encoder
from pipeline.engine.models import load_frozen, prepare_inference, release
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start
from pipeline.methods.base import MethodConfig
from pipeline.methods.limits import check_injection, check_positions, check_verdict

log = logging.getLogger(__name__)

LABEL_FORMAT = "1"
"""Of labels/: raised when the same parts of its fingerprint come to mean other states."""


def encode_labels(config: RunConfig, backbone: Backbone | None = None) -> LabelStates:
    """Makes labels/ in the run directory, or finds it current. Raises UserError where data/ is not current.

    `backbone`: the command's; None: one of its own.
    """
    accelerator, ranks = start(config)
    backbone = backbone or backbone_of(config.backbone, config.data)
    check_injection(config.method, backbone.facts)
    run, data, seed = config.run_dir, config.data, config.run.seed
    names = ranks.on_main(lambda: current_data(run, data, config.labels, seed, backbone))["labels"]
    words = hypotheses(names, config.labels)
    form = config.method.starts_from
    texts = text_encoder(backbone, data)
    wanted = label_fingerprint(backbone, ranks, texts, names, words, config.method)
    folder = run.labels
    artefact = label_artefact(folder)
    if (folder / NAMES_FILE).is_file():
        found = artefact.found(lambda: LabelStates.load(folder).wanted_by(config.method))
        if found is not None and artefact.is_current(found.fingerprint, wanted | verdict_in(found)):
            check_verdict(config.method, found.fingerprint)
            return found
    if ranks.is_main:
        _warn_of_fields(config.labels)
    tokens = texts.hypotheses(words.texts, form)
    check_positions(config.method, backbone.facts, tokens.kept.shape[1], data.max_length)
    reader = AsInjection(load_frozen(accelerator, ranks, backbone), form)
    model = prepare_inference(accelerator, reader, config.backbone.torch_dtype)
    if backbone.facts.family not in TESTED:
        wanted |= _checked(model, reader)
        check_verdict(config.method, wanted)
    read, as_injections = read_hypotheses(model, tokens, accelerator.device)
    in_one = _read_in_one(model, reader, tokens, config.method.starts_with, accelerator.device)
    states = LabelStates(names, words.texts, read, tokens.kept, wanted, as_injections, in_one, words.weights)
    release(accelerator, model)
    ranks.on_main(lambda: _write(states, folder))
    log.info("encode-labels: %d labels, %d tokens each, in %s", len(names), states.hypothesis_tokens, folder)
    return states


def _warn_of_fields(labels: LabelsConfig) -> None:
    """Someone may have meant them as those of a template; a label may be called so, too."""
    names = [
        repr(name)
        for name, own in labels.texts.items()
        if any(has_field(text, "label", ("label",)) for text in weighted(own))
    ]
    if names:
        log.warning(
            "labels.texts: {label} in what is said of %s is read as it stands: only labels.template has the name put "
            "in its place, so write the name",
            some(names),
        )


def current_label_states(
    run_dir: RunDir,
    labels: LabelsConfig,
    data: DataConfig,
    names: list[str],
    backbone: Backbone,
    ranks: Ranks,
    method: MethodConfig,
) -> LabelStates:
    """The label states for training. Raises UserError where they were made from something else. Collective.

    `names`: the labels, as data/ has them.
    """
    states = LabelStates.load(run_dir.labels).wanted_by(method)
    texts = text_encoder(backbone, data)
    wanted = label_fingerprint(backbone, ranks, texts, names, hypotheses(names, labels), method)
    label_artefact(run_dir.labels).check(states.fingerprint, wanted | verdict_in(states))
    return states


def label_fingerprint(
    backbone: Backbone, ranks: Ranks, texts: TextEncoder, names: list[str], words: Hypotheses, method: MethodConfig
) -> dict[str, str]:
    """Everything the label states depend on, part by part. Collective."""
    form, length = method.starts_from, method.starts_with
    special = any(token in word for token in special_texts(backbone.tokenizer) for word in words.texts)
    return {
        FORMAT: LABEL_FORMAT,
        **backbone.fingerprint(ranks),
        "tokenizer": backbone.tokenizer_fingerprint,
        "labels": sha256_of(*names),
        "hypotheses": sha256_of(*words.texts),
        **({} if words.weights is None else {WEIGHTS_OF_HYPOTHESES: str(words.weights)}),
        "data.max_length": str(texts.max_length),
        # Only where it matters, so that older label states stay current.
        **({"data.special_tokens": str(backbone.special_tokens)} if special else {}),
        **({START_PART: _start_of(form, texts)} if form else {}),
        **({ALL_IN_ONE_PART: f"{length} tokens"} if length else {}),
    }


def verdict_in(states: LabelStates) -> dict[str, str]:
    """It is found, not configured: what was found holds for all that has the same weights."""
    return {part: value for part, value in states.fingerprint.items() if part.startswith(f"{CHECK_PART}.")}


def _start_of(form: Form, texts: TextEncoder) -> str:
    """Words that end with a line or a special token change what the first word of a hypothesis becomes behind them."""
    return f"{form}{'' if texts.end_needs_space or not form.is_behind else ', without a space'}"


def _read_in_one(
    model: nn.Module, reader: AsInjection, tokens: HypothesisTokens, length: int | None, device: torch.device
) -> Tensor | None:
    """Keys and values [N, W] of N = `length` tokens of all hypotheses in one; None where none are wanted. Collective.

    `model`: `reader`, or an engine around it.
    """
    if length is None:
        return None
    reader.form = Form("prefix")
    _, found = read_hypotheses(model, all_in_one(tokens, length), device)
    assert found is not None
    return found[0]


def _checked(model: nn.Module, reader: AsInjection) -> dict[str, str]:
    """The verdict on a backbone of a family that is not tested, as parts of a fingerprint. Collective."""
    verdict = check_reading(model, reader)
    family = reader.backbone.facts.family
    log.info("%s is not a tested family; checked on the model: prompt %s, prefix %s", family, *astuple(verdict))
    return verdict.parts()


def _write(states: LabelStates, folder: Path) -> None:
    with atomic_dir(folder, sums=True) as temporary:
        states.save(temporary)
