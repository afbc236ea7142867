"""The classifier: a frozen backbone, a tuning method and the label states it judges texts against."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pipeline.backbone.config import Pooling
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, KeptTexts
from pipeline.backbone.pooling import pool
from pipeline.backbone.text_reader import as_kept_texts
from pipeline.backbone.trunk import Trunk
from pipeline.core.errors import UserError
from pipeline.methods.base import Reader, TuningMethod
from pipeline.methods.heads import FITTED
from pipeline.methods.hypothesis_mean import HypothesisMean, label_scores

INSIDE = "backbone"
"""Trained parameters of the backbone have names that start with this and a dot."""


def without_inside(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tuning method's part of a trained state."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{INSIDE}.")}


def parameter_count(state: Mapping[str, Tensor]) -> int:
    """Numbers of a trained state that steps have trained or a fit has found; counts of texts and switches are none."""
    return sum(tensor.numel() for name, tensor in state.items() if tensor.is_floating_point() or name.endswith(FITTED))


class LTuningModel(nn.Module):
    """Scores (text, label) candidates."""

    label_states: Tensor
    label_mask: Tensor
    continuations: Tensor | None
    label_start: Tensor | None

    def __init__(
        self,
        backbone: FrozenBackbone,
        method: TuningMethod,
        label_states: Tensor,
        label_mask: Tensor,
        pooling: Pooling,
        continuations: Tensor | None = None,
        label_start: Tensor | None = None,
        mean: HypothesisMean | None = None,
    ) -> None:
        """label_states [K, P, H], label_mask [K, P]: what `candidates` index; pooling: last, first or mean.

        continuations [K, Q]: tokens of the hypotheses behind a text, for methods that read them; label_start
        [K, P, W]: what injections start from, for methods that say so. With `mean` all these are of J hypotheses, and
        `candidates` index the labels that have them.
        """
        super().__init__()
        method.attach(backbone.model)
        if method.edits is not None and method.edits.before:
            _ = backbone.sites  # or refuses
        if method.form is not None and method.form.first_layer:
            _ = backbone.split  # or refuses
        self.backbone = backbone
        self.method = method
        self.pooling = pooling
        self.mean = mean
        self.register_buffer("label_states", label_states, persistent=False)
        self.register_buffer("label_mask", label_mask.bool(), persistent=False)
        self.register_buffer("continuations", continuations, persistent=False)
        self.register_buffer("label_start", label_start, persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        candidates: Tensor,
        token_type_ids: Tensor | None = None,
        alone: Tensor | None = None,
        token_states: Tensor | None = None,
        *,
        sizes: list[int] | None = None,
        unscored: bool = False,
    ) -> Tensor:
        """How true each candidate label is of its text.

        input_ids, attention_mask, token_type_ids [B, T]; candidates [B, C], label indices -> scores [B, C] float32.
        `alone` [B, M], `token_states` [B, T, W]: the texts' stored states, which are then not read again; the latter
        are those before injections of the method's form. `sizes`: the candidates are scored in parts of so many, but
        what needs one reading of a text has one. `unscored`: what is read of each text with each candidate's injection
        instead, [B, C, M].
        """
        read = _Reader(self, input_ids, attention_mask, token_type_ids, alone, token_states, unscored)
        if unscored:
            return self._injected_states(read, candidates)
        return torch.cat([self.scores(read, part) for part in candidates.split(sizes or candidates.shape[1], 1)], 1)

    def scores(self, read: Reader, candidates: Tensor) -> Tensor:
        """The same, of texts that `read` reads: candidates [B, C] -> scores [B, C] float32."""
        return label_scores(self.method, read, candidates, self.label_states, self.label_mask, self.mean)

    def beginning(self, rows: int, *, unscored: bool = False) -> Injection | None:
        """See `TuningMethod.beginning`; of so many rows, for texts that are scored, or `unscored` as in `forward`.

        None where gradients are wanted, since texts are read without one, and where scoring injects nothing.
        """
        if torch.is_grad_enabled() or not (unscored or self.method.reads_injected):
            return None
        found = self.method.beginning(self.label_states, self.label_mask, self.label_start)
        return None if found is None else found.expand(rows)

    def _injected_states(self, read: Reader, candidates: Tensor) -> Tensor:
        """[B, C, M]"""
        if self.mean is None:
            return self.method.injected_states(read, candidates, self.label_states, self.label_mask)
        hypotheses = self.mean.places[candidates].flatten(1)
        found = self.method.injected_states(read, hypotheses, self.label_states, self.label_mask)
        return self.mean(found, candidates)

    @property
    def label_count(self) -> int:
        """K"""
        return len(self.label_states if self.mean is None else self.mean.places)

    @property
    def most_hypotheses(self) -> int:
        """Of one label."""
        return 1 if self.mean is None else self.mean.most

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training may change, by name. Optimizer, saving, loading and counting all use this."""
        return dict(self.method.named_parameters()) | self.inside()

    def inside(self) -> dict[str, nn.Parameter]:
        """Those of them that are part of the backbone (LoRA's, or all of it)."""
        named = self.backbone.named_parameters(prefix=INSIDE)
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def load_inside(
        self, state: Mapping[str, Tensor], whole: Callable[[nn.Parameter], AbstractContextManager] = nullcontext
    ) -> None:
        """Copies the values of `inside()` out of a trained state. `whole` makes a parameter whole for the time.

        Raises UserError where the state is of another backbone.
        """
        if strays := {name for name in state if name.startswith(f"{INSIDE}.")} - self.inside().keys():
            raise UserError(f"the trained state has '{min(strays)}', which this backbone does not train: train again")
        for name, parameter in self.inside().items():
            with whole(parameter):
                if name not in state or state[name].shape != parameter.shape:
                    raise UserError(f"the trained state has no '{name}' of shape {list(parameter.shape)}: train again")
                parameter.data.copy_(state[name])


@dataclass
class _Reader:
    """How a method's `scores` reads the texts of one batch; see `pipeline.methods.base.Reader`."""

    model: LTuningModel
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    alone: Tensor | None
    token_states: Tensor | None
    unscored: bool

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        if injection is None:
            return self._pooled_alone.repeat_interleave(copies, 0)
        if self._is_behind:
            return pool(self.model.backbone.behind(self._kept, injection), injection.mask, self.model.pooling)
        return self._read(injection, copies)

    @cached_property
    def _pooled_alone(self) -> Tensor:
        """[B, M]. A probe and what is tuned beside it both ask for it."""
        if self.alone is not None and self.model.method.edits_of(None) is None:
            return self.alone
        if self._is_behind:
            return pool(self._kept.hidden, self._kept.text_mask, self.model.pooling)
        return self._read(None, 1)

    def _read(self, injection: Injection | None, copies: int) -> Tensor:
        edits = self.model.method.edits_of(injection)
        ids, mask = self.input_ids.repeat_interleave(copies, 0), self.attention_mask.repeat_interleave(copies, 0)
        types = None if self.token_type_ids is None else self.token_type_ids.repeat_interleave(copies, 0)
        trunk = None if self._trunk is None else self._trunk.repeat(copies)
        hidden = self.model.backbone(ids, mask, injection, types, trunk=trunk, edits=edits)
        return pool(hidden, mask, self.model.pooling)

    @property
    def _is_behind(self) -> bool:
        form = self.model.method.form
        return form is not None and form.is_behind

    @cached_property
    def _kept(self) -> KeptTexts:
        if self.token_states is not None:
            return as_kept_texts(self.token_states, self.attention_mask, self.model.backbone.facts)
        beginning = self.model.beginning(len(self.input_ids), unscored=self.unscored)
        return self.model.backbone.keep(self.input_ids, self.attention_mask, beginning)

    @cached_property
    def _trunk(self) -> Trunk | None:
        form = self.model.method.form
        if form is None or form.first_layer == 0:
            return None
        if self.token_states is not None:
            return Trunk(form.first_layer, self.token_states)
        return self.model.backbone.trunk(self.input_ids, self.attention_mask, form.first_layer, self.token_type_ids)

    def start(self, labels: Tensor, /) -> Tensor | None:
        start = self.model.label_start
        return None if start is None else start[labels]

    def likelihood(self, labels: Tensor, /) -> Tensor:
        assert self.model.continuations is not None, "the model was built without the labels' continuations"
        backbone, kept = self.model.backbone, self._kept if self.model.backbone.keeps_texts else None
        words = self.model.continuations[labels.flatten()]
        return backbone.likelihood(self.input_ids, self.attention_mask, words, kept).view_as(labels)


class StateModel(nn.Module):
    """Scores texts by their stored states alone, for methods with `from_states`: there is no backbone in it."""

    label_states: Tensor
    label_mask: Tensor

    def __init__(
        self, method: TuningMethod, label_states: Tensor, label_mask: Tensor, mean: HypothesisMean | None = None
    ) -> None:
        """label_states [K, P, H], label_mask [K, P]; with `mean` those of J hypotheses"""
        super().__init__()
        self.method = method
        self.mean = mean
        self.register_buffer("label_states", label_states, persistent=False)
        self.register_buffer("label_mask", label_mask, persistent=False)

    @property
    def most_hypotheses(self) -> int:
        """Of one label."""
        return 1 if self.mean is None else self.mean.most

    def forward(self, alone: Tensor, candidates: Tensor) -> Tensor:
        """alone [B, M]: states of the texts; candidates [B, C], label indices -> scores [B, C] float32."""
        read = _StoredReader(alone)
        return label_scores(self.method, read, candidates, self.label_states, self.label_mask, self.mean)


@dataclass(frozen=True)
class _StoredReader:
    """Texts that were read before, alone; see `pipeline.methods.base.Reader`."""

    alone: Tensor

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        assert injection is None, "a method that is scored by stored states injects nothing"
        return self.alone.repeat_interleave(copies, 0)

    def start(self, labels: Tensor, /) -> Tensor | None:
        raise NotImplementedError

    def likelihood(self, labels: Tensor, /) -> Tensor:
        raise NotImplementedError
