"""The adapter directory: all that a trained classifier is, without the backbone. Nothing in it is ever unpickled.

adapter.safetensors         trained tensors of the tuning method, by parameter name
adapter_config.json         AdapterConfig
label_states.safetensors    label states [K, P, H] and mask;  labels.json: names, hypotheses, fingerprint
README.md                   model card
calibration.json            temperature of the probabilities, once evaluate has fitted it
"""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.adapter.card import model_card
from pipeline.adapter.config import AdapterConfig, read_adapter_config
from pipeline.adapter.label_states import LabelStates, label_absent
from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.weights import FLOATS, shortened
from pipeline.core.artefact import differences, warn_of_unknown
from pipeline.core.bounds import check_folder
from pipeline.core.checksums import read_whole
from pipeline.core.errors import UserError, about
from pipeline.core.files import atomic_dir, write_json, write_text
from pipeline.core.run_dir import RunDir
from pipeline.data.hypotheses import HypothesisTokens, continuations
from pipeline.data.texts import TextEncoder
from pipeline.evaluation.calibration import FILE as CALIBRATION
from pipeline.evaluation.calibration import load_calibration
from pipeline.methods import TuningMethod
from pipeline.methods.model import parameter_count, without_inside

log = logging.getLogger(__name__)

TENSORS, CONFIG, CARD = "adapter.safetensors", "adapter_config.json", "README.md"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter directory."""

    config: AdapterConfig
    method_state: dict[str, Tensor]
    labels: LabelStates
    temperature: float = 1.0
    """What scores are divided by to become probabilities; 1 unless `load_adapter` was called with `calibrated`."""

    @property
    def is_inside(self) -> bool:
        """Has it trained parameters of the backbone, or in it, so that nobody else can read with that backbone?"""
        return len(without_inside(self.method_state)) < len(self.method_state)

    def build_method(self, facts: BackboneFacts) -> TuningMethod:
        """The trained method for the backbone of these sizes, in the backbone's compute dtype, as it ran in training.

        UserError if its tensors do not fit.
        """
        facts = replace(facts, pooled=self.config.backbone.pooled)  # not all that share a backbone pool alike
        # What belongs into the backbone is there once the model is built: `LTuningModel.load_inside`.
        state = without_inside(self.method_state)
        expected = self._expected_forms(facts)
        found = {name: _form(tensor) for name, tensor in state.items()}
        if expected != found:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            name = wrong[0]
            raise UserError(
                f"{TENSORS}: {len(wrong)} tensors do not fit {self.config.method.name} on "
                f"'{self.config.backbone.name_or_path}', first '{name}': {found.get(name, 'absent')}, "
                f"expected {expected.get(name, 'absent')}; take the backbone the adapter was trained on, or train again"
            )
        with torch.random.fork_rng(devices=[]):  # start values, which are replaced: no draw that anybody else misses
            method = self.config.method.build(facts, self.labels.hypothesis_tokens, len(self.labels.names))
        method.load_state_dict(state)
        self._warn_of_window(facts)
        # What is fitted, and not trained inside an engine, keeps its digits.
        return method if self.config.method.from_states else method.to(self.config.backbone.torch_dtype)

    def _warn_of_window(self, facts: BackboneFacts) -> None:
        """Where it was trained when a sliding window still hid a prefix: by a version that did not know this key."""
        method, window = self.config.method, facts.sliding_window
        if window is None or method.injects != "prefix" or "attention" in self.config.backbone.model_fields_set:
            return
        length = method.injected_tokens(self.labels.hypothesis_tokens) + self.config.data.max_length
        if length > window:
            log.warning(
                "the adapter is of a version in which the backbone's sliding window of %d positions hid the prefix "
                "from the ends of long texts; now all of a text sees it, so that their scores differ: train again",
                window,
            )

    def _expected_forms(self, facts: BackboneFacts) -> dict[str, str]:
        """Of the method's tensors, by name, before any memory is taken for them."""
        width, name = self.labels.states.shape[2], self.config.backbone.name_or_path
        if width != facts.hidden_size:
            raise UserError(f"the label states are {width} wide, '{name}' {facts.hidden_size}: take another backbone")
        self._check_start(facts)
        try:
            with torch.device("meta"):
                method = self.config.method.build(facts, self.labels.hypothesis_tokens, len(self.labels.names))
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UserError(f"{CONFIG} asks for impossible sizes: copy the adapter directory again") from error
        return {name: _form(tensor) for name, tensor in method.state_dict().items()}

    def _check_start(self, facts: BackboneFacts) -> None:
        """UserError where what injections start from is not what the method takes."""
        form, start = self.config.method.starts_from, self.labels.start
        expected = None if form is None else form.width(facts)
        found = None if start is None else start.shape[2]
        if expected != found:
            raise UserError(
                f"the labels' start has width {found}, {self.config.method.name} takes {expected}: copy the adapter "
                "directory again, or take the backbone it was trained on"
            )

    def continuations(
        self, tokenizer: PreTrainedTokenizerBase, facts: BackboneFacts, hypotheses: Sequence[str]
    ) -> Tensor | None:
        """Tokens [K, Q] of these hypotheses behind a text, for `LTuningModel`, where the method reads them.

        UserError where text and hypothesis do not fit the backbone's positions.
        """
        if not (self.config.method.reads_hypotheses and facts.is_decoder):
            return None
        room = None if facts.max_positions is None else facts.max_positions - self.config.data.max_length
        return continuations(tokenizer, hypotheses, room, space=self.texts(tokenizer).end_needs_space)

    def hypothesis_tokens(
        self, tokenizer: PreTrainedTokenizerBase, facts: BackboneFacts, hypotheses: Sequence[str]
    ) -> HypothesisTokens:
        """Tokens [J, P] of these hypotheses, with at least the P of training, to which some methods are bound.

        UserError where such a method cannot take as many as there are.
        """
        tokens = self.texts(tokenizer).hypotheses(hypotheses, self.config.method.starts_from)
        method, trained, found = self.config.method, self.labels.hypothesis_tokens, tokens.kept.shape[1]
        count = len(self.labels.names)
        bound = method.trainable_count(facts, trained, count) != method.trainable_count(facts, trained + 1, count)
        if found > trained and bound:
            raise UserError(
                f"a hypothesis has {found} tokens, this adapter ({method.name}) takes at most the {trained} of "
                "its training: choose shorter names or hypotheses"
            )
        width = (0, max(0, trained - found))
        input_ids, mask = (nn.functional.pad(tensor, width) for tensor in (tokens.input_ids, tokens.mask))
        return HypothesisTokens(input_ids, mask, tokens.opening)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
        """How texts become tokens, as in training."""
        data = self.config.data
        return TextEncoder(tokenizer, data.max_length, data.template, data.chat)

    def check_backbone(self, weights: Mapping[str, str], tokenizer: str | None = None) -> None:
        """UserError, naming the part, if these fingerprints are not those of the backbone the adapter was made for."""
        # The other parts are settings, such as its name, which may be another one now.
        others = {part: value for part, value in self.labels.fingerprint.items() if part not in weights}
        now = {} if tokenizer is None else {"tokenizer": tokenizer}
        absent, wanted = label_absent(), {**others, **weights, **now}
        warn_of_unknown("the adapter", self.labels.fingerprint, wanted, absent)
        changed = differences(self.labels.fingerprint, wanted, absent)
        if changed:
            raise UserError(
                f"the adapter was made for another backbone than '{self.config.backbone.name_or_path}' is now: "
                f"{'; '.join(changed)}; give the backbone it was trained on"
            )


def save_adapter(
    path: Path,
    method_state: Mapping[str, Tensor],
    config: AdapterConfig,
    labels: LabelStates,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Writes the directory whole or not at all. `metrics`: split -> `split_metrics`, for the model card.

    `summary`, of the run that ends with this adapter, is kept in it as summary.json.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method_state.items()}
    with atomic_dir(Path(path), sums=True) as folder:
        # Not save_file: its error on a full disk is not an OSError, and its files are readable by their owner alone.
        (folder / TENSORS).write_bytes(save(state, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        labels.save(folder)
        write_card(folder, Adapter(config, state, labels), metrics or {})
        if summary is not None:
            write_json(folder / SUMMARY, summary)


def write_card(path: Path, adapter: Adapter, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """(Re)writes README.md of an adapter directory with these metrics."""
    config = adapter.config
    text = model_card(
        backbone=config.backbone.name_or_path,
        revision=config.backbone.revision,
        method=config.method.name,
        parameters=parameter_count(adapter.method_state),
        labels=[(name, "; ".join(words)) for name, words in adapter.labels.by_label.items()],
        pair=config.data.text_pair is not None,
        max_length=config.data.max_length,
        open_labels=config.method.open_labels,
        results=metrics,
    )
    write_text(Path(path) / CARD, text)


def load_adapter(path: Path, *, calibrated: bool = False) -> Adapter:
    """Reads the directory: one whole adapter, also where another one takes its place meanwhile.

    `calibrated`: with the temperature that evaluate fitted. UserError names the file that is missing, damaged, of
    another format or not calibrated.
    """
    with about(f"adapter directory {str(path)!r}"):
        return read_whole(Path(path), lambda folder: _load(folder, calibrated))


def adapter_folder(path: str | Path) -> Path:
    """The adapter directory that `path` is, or that the run directory `path` holds; or the one that is ORG/NAME or
    ORG/NAME@REVISION on the hub, in the hub's cache. UserError where that is not there."""
    from pipeline.adapter.hub import fetched, is_hub_name  # late: it imports this module, and the hub's client

    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character
        raise UserError(f"adapter '{path}' cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if is_hub_name(path):
        return fetched(str(path))
    run_dir = RunDir(path)
    # While the adapter of a run is replaced, it may be absent for a moment.
    is_run = run_dir.config_file.is_file() or run_dir.adapter.is_dir()
    return run_dir.adapter if is_run else run_dir.path


def adapter_fingerprint(path: Path) -> str:
    """Hash of everything in an adapter directory that scores depend on."""
    return read_whole(Path(path), _fingerprint)


def _fingerprint(folder: Path) -> str:
    _check_files(folder)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        # What starts with a dot is a file that `atomic_file` is writing, or a killed process was.
        if file.name not in (CARD, CALIBRATION) and not file.name.startswith("."):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _load(folder: Path, calibrated: bool) -> Adapter:
    if not (folder / CONFIG).is_file():
        reason = f"{CONFIG} is missing" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"'{folder}' is not an adapter directory ({reason}): give a finished run, or the adapter/ folder of one"
        )
    _check_files(folder)
    config, state = read_adapter_config(folder / CONFIG), _read_tensors(folder / TENSORS)
    labels = LabelStates.load(folder)  # with the checksums, so that a damaged file is not taken for another calibration
    temperature = load_calibration(folder).temperature if calibrated else 1.0
    return Adapter(config, state, labels, temperature)


def _check_files(folder: Path) -> None:
    try:
        check_folder(folder)
    except OSError as error:
        raise UserError(f"adapter directory '{folder}' cannot be read: {error}") from error


def _form(tensor: Tensor) -> str:
    """Shape and kind of numbers; how precise they are may differ."""
    return f"{'floats' if tensor.is_floating_point() else 'integers'} {list(tensor.shape)}"


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"'{file}' is missing or damaged ({error}); copy the adapter directory again") from error
    faulty = [
        name
        for name, tensor in tensors.items()
        if tensor.dtype not in (*FLOATS.values(), torch.int64) or not torch.isfinite(tensor).all()
    ]
    if faulty:
        raise UserError(f"'{file}': {shortened(faulty)}: not finite numbers; copy the adapter directory again")
    return tensors
