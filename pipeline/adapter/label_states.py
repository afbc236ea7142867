"""Label states: the frozen backbone's reading of each label's hypothesis, made once and kept in a file."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.weights import FLOATS, WEIGHTS_PART
from pipeline.core.artefact import Absent, Artefact, defaults_of
from pipeline.core.bounds import MOST_HYPOTHESES
from pipeline.core.checksums import check_sums, read_whole
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.settings import Settings
from pipeline.data.config import Weight
from pipeline.data.hypotheses import Hypotheses, HypothesisTokens
from pipeline.methods.base import MethodConfig, TuningMethod
from pipeline.methods.hypothesis_mean import HypothesisMean, labels_of

STATES_FILE = "label_states.safetensors"
NAMES_FILE = "labels.json"
MADE_AGAIN = "copy it again, or run encode-labels again"
FORMAT, SEVERAL = 1, 2
"""Of labels.json. 2: a label has several hypotheses, and they have weights."""
START_PART = "start"
"""The part of their fingerprint that says in which form the hypotheses are kept as injections; absent: they are not."""
WEIGHTS_OF_HYPOTHESES = "weights of hypotheses"
"""The part that says how many hypotheses each label has, and how they weigh; absent: one each."""
ALL_IN_ONE_PART = "all_in_one"
"""The part that says how many tokens are kept of all hypotheses in one; absent: none."""


def label_absent() -> Absent:
    """What the lack of a part stands for in the fingerprint of label states. The older ones lack "weights"."""
    return {**defaults_of(backbone=BackboneConfig), WEIGHTS_PART: None}


def label_artefact(folder: Path) -> Artefact:
    """labels/"""
    return Artefact(folder, "encode-labels", label_absent())


@dataclass(frozen=True)
class LabelStates:
    """The labels of a classifier in index order, as words and as states."""

    names: list[str]
    hypotheses: list[str]
    states: Tensor
    """[K, P, H], last hidden states in the backbone's compute dtype; zero where `mask` is False."""
    mask: Tensor
    """[K, P] bool"""
    fingerprint: dict[str, str]
    """What the states were made from: backbone, weights, tokenizer, hypotheses, dtype."""
    start: Tensor | None = None
    """[K, P, W], the hypotheses as injections (`pipeline.backbone.as_injection`), where injections start from them."""
    all_in_one: Tensor | None = None
    """[N, W], keys and values of N tokens of all hypotheses, one behind the other, where training starts from them."""
    weights: list[list[float]] | None = None
    """Where labels have several hypotheses, which K counts then: of each label's, in the order of `hypotheses`."""

    @property
    def by_label(self) -> dict[str, dict[str, float]]:
        """Label -> its hypotheses and their weights."""
        return dict(zip(self.names, Hypotheses(self.hypotheses, self.weights).by_label, strict=True))

    @property
    def mean(self) -> HypothesisMean | None:
        """What makes scores of labels of those of their hypotheses."""
        return None if self.weights is None else HypothesisMean(self.weights)

    @property
    def most_hypotheses(self) -> int:
        """Of one label."""
        return 1 if self.weights is None else max(map(len, self.weights))

    def judged_by(self, method: TuningMethod, device: torch.device) -> TuningMethod:
        """A method, on this device, that was built for so many labels, as one that judges them by their hypotheses."""
        return method if self.weights is None else method.among(labels_of(self.weights).to(device))

    @property
    def hypothesis_tokens(self) -> int:
        """P"""
        return self.mask.shape[1]

    def wanted_by(self, method: MethodConfig) -> "LabelStates":
        """The same, without what this method does not start from."""
        states = self if method.starts_from is not None else replace(self._without(START_PART), start=None)
        return states if method.starts_with is not None else states.of_adapter()

    def of_adapter(self) -> "LabelStates":
        """The same, without what only training starts from."""
        return replace(self._without(ALL_IN_ONE_PART), all_in_one=None)

    def _without(self, part: str) -> "LabelStates":
        return replace(self, fingerprint={name: value for name, value in self.fingerprint.items() if name != part})

    def save(self, folder: Path) -> None:
        """Writes both files into an existing folder."""
        found = {"states": self.states, "mask": self.mask, "start": self.start, "all_in_one": self.all_in_one}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in found.items() if tensor is not None}
        # Not save_file: its error on a full disk is not an OSError.
        data = safetensors.torch.save(tensors, metadata={"fingerprint": json.dumps(self.fingerprint)})
        (folder / STATES_FILE).write_bytes(data)
        words = {"version": FORMAT, "names": self.names, "hypotheses": self.hypotheses, "fingerprint": self.fingerprint}
        several = {} if self.weights is None else {"version": SEVERAL, "weights": self.weights}
        write_json(folder / NAMES_FILE, words | several)

    @classmethod
    def load(cls, folder: Path) -> "LabelStates":
        """Reads what `save` wrote. Raises UserError for missing, damaged or mixed-up files."""
        return read_whole(folder, cls._load)

    @classmethod
    def _load(cls, folder: Path) -> "LabelStates":
        words = _read_words(folder / NAMES_FILE)
        path = folder / STATES_FILE
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                made_from = json.loads((file.metadata() or {}).get("fingerprint", "{}"))
                states, mask = file.get_tensor("states"), file.get_tensor("mask")
                start = file.get_tensor("start") if START_PART in words.fingerprint else None
                all_in_one = file.get_tensor("all_in_one") if ALL_IN_ONE_PART in words.fingerprint else None
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise UserError(f"'{path}' is missing or damaged ({error}): {MADE_AGAIN}") from error
        fits = states.ndim == 3 and mask.shape == states.shape[:2] and len(mask) == len(words.hypotheses)
        fits &= start is None or (start.ndim == 3 and start.shape[:2] == mask.shape)
        fits &= all_in_one is None or all_in_one.ndim == 2
        if made_from != words.fingerprint or not fits:
            raise UserError(f"'{path}' does not belong to '{NAMES_FILE}' beside it: {MADE_AGAIN}")
        if fault := _fault(states, mask, start, all_in_one):
            raise UserError(f"'{path}' is damaged ({fault}): {MADE_AGAIN}")
        check_sums(folder)
        return cls(words.names, words.hypotheses, states, mask, words.fingerprint, start, all_in_one, words.weights)


class _Words(Settings):
    """labels.json"""

    version: Literal[1, 2]
    names: list[str] = Field(min_length=2)
    hypotheses: list[str]
    fingerprint: dict[str, str]
    weights: list[Annotated[list[Weight], Field(min_length=1, max_length=MOST_HYPOTHESES)]] | None = None

    @model_validator(mode="after")
    def _has_hypotheses_of_each_name(self) -> "_Words":
        if (self.weights is None) != (self.version == FORMAT):
            raise ValueError(f"version {self.version} {'lacks' if self.weights is None else 'has'} weights")
        counts = [1] * len(self.names) if self.weights is None else list(map(len, self.weights))
        if len(self.names) != len(counts) or sum(counts) != len(self.hypotheses):
            raise ValueError(f"{len(self.names)} names and {len(self.hypotheses)} hypotheses do not fit")
        if any(abs(sum(own) - 1) > 1e-6 for own in self.weights or ()):
            raise ValueError("the weights of a label's hypotheses do not sum to 1")
        if len(set(self.names)) < len(self.names):
            raise ValueError("a label is named twice")
        if not all(word.strip() for word in [*self.names, *self.hypotheses]):
            raise ValueError("a label has no name or no hypothesis")
        return self


def _fault(states: Tensor, mask: Tensor, *starts: Tensor | None) -> str | None:
    """What is wrong with states [K, P, H], mask [K, P] and what injections start from, if anything is."""
    if states.dtype not in FLOATS.values() or mask.dtype != torch.bool:
        return f"states are {states.dtype} and their mask {mask.dtype}, where floats and bool are expected"
    for start in starts:
        if start is not None and (start.dtype != states.dtype or not torch.isfinite(start).all()):
            return "what its injections start from are not finite numbers"
    if not mask.any(1).all():  # which P = 0 fails too
        return "a label has no token"
    if states.shape[2] == 0 or not torch.isfinite(states).all():
        return "its states are not finite numbers"
    return None


def _read_words(path: Path) -> _Words:
    value = read_json(path)
    try:
        return _Words.model_validate(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"'{path}' is damaged ({reason}): {MADE_AGAIN}") from error


def read_hypotheses(
    backbone: nn.Module, tokens: HypothesisTokens, device: torch.device, rows_per_forward: int = 32
) -> tuple[Tensor, Tensor | None]:
    """The hypotheses' last hidden states [K, P, H], and what they are as injections [K, P, W], on the CPU.

    `backbone`, on `device`, is an AsInjection or an engine around one; under ZeRO-3 every rank must call this alike.
    """
    input_ids, mask = tokens.input_ids.to(device), tokens.mask.to(device)
    chunks: list[list[Tensor]] = []
    with torch.no_grad():
        for start in range(0, len(input_ids), rows_per_forward):
            exists = mask[start : start + rows_per_forward]
            found = backbone(input_ids[start : start + rows_per_forward], exists.long())
            own = (values * exists.unsqueeze(-1) for values in found if values is not None)
            chunks.append([values[:, tokens.opening :].cpu() for values in own])
    states, *injections = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    if not all(torch.isfinite(values).all() for values in (states, *injections)):
        raise UserError(
            "the backbone's states of the labels are not finite: check its weights, or set backbone.dtype=float32"
        )
    return states, injections[0] if injections else None
