"""What methods ask of one backbone, and how requests of several methods become one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbone.by_length import by_length, pass_cost, prompts_by_length
from pipeline.backbone.facts import Form
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import NO_TOKEN, Injection
from pipeline.backbone.pooling import pool
from pipeline.backbone.sites import Edits, edits_by_rows
from pipeline.backbone.text_reader import as_kept_texts, of_kept_texts
from pipeline.backbone.trunk import Trunk
from pipeline.methods.model import LTuningModel

Kind: TypeAlias = Literal["alone", "prompt", "prefix", "trunk", "kept", "behind", "likelihood"]


@dataclass(frozen=True)
class Texts:
    """R rows of tokens."""

    ids: Tensor
    """[R, T]"""
    mask: Tensor
    """[R, T], nonzero: real token"""
    types: Tensor | None
    """[R, T] token types of pairs"""

    def select(self, rows: Tensor | slice) -> "Texts":
        """These rows; a tensor of them may repeat some."""
        return Texts(self.ids[rows], self.mask[rows], None if self.types is None else self.types[rows])

    def repeat(self, copies: int) -> "Texts":
        """Each row `copies` times in a row."""
        return self.select(torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(copies))


@dataclass(frozen=True)
class Asked:
    """Rows that a method wants to be read; what it gets for them, row by row, is what `Kind` says.

    alone, prompt, prefix: hidden states [R, T, M], read with that injection or none, from layer `first_layer` on where
    `before` has what the layers below made of the texts. trunk: that, [R, T, H]. kept: hidden states, and every layer's
    keys and values, side by side, [R, T + S, M + W], of the texts and of a prompt of S tokens right behind them.
    behind: the hidden states [R, P, M] of prompts behind what is so kept in `before`. likelihood: [R] of `words`,
    behind kept texts or read with them.
    """

    kind: Kind
    texts: Texts
    first_layer: int = 0
    injection: Injection | None = None
    before: Tensor | None = None
    """What trunk or kept gave for the texts."""
    words: Tensor | None = None
    """[R, Q] tokens of a hypothesis, filled up with NO_TOKEN"""
    edits: Edits | None = None
    """What acts on these rows, and on no other method's that are read with them."""

    def __len__(self) -> int:
        return len(self.texts.ids)

    @property
    def width(self) -> int:
        """Positions that each row takes."""
        more = 0 if self.injection is None else self.injection.mask.shape[1]
        return self.texts.ids.shape[1] + more + (0 if self.words is None else self.words.shape[1])

    @property
    def answered(self) -> int:
        """Positions of the answer."""
        if self.kind == "behind" and self.injection is not None:
            return self.injection.mask.shape[1]
        return self.width if self.kind == "kept" else self.texts.ids.shape[1]

    def part(self, start: int, stop: int) -> "Asked":
        """Some of the rows."""
        rows = slice(start, stop)
        return replace(
            self,
            texts=self.texts.select(rows),
            injection=None if self.injection is None else self.injection.select(torch.arange(start, stop)),
            before=None if self.before is None else self.before[rows],
            words=None if self.words is None else self.words[rows],
        )


Piece: TypeAlias = tuple[int, Asked]
"""Some rows of what is asked, and its place."""


@dataclass
class AskingReader:
    """Lets a method's `scores` read the texts of one batch by asking; see `pipeline.methods.base.Reader`."""

    model: LTuningModel
    texts: Texts
    ask: Callable[[Asked], Tensor]

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        if self._form is not None and self._form.is_behind:
            return self._behind(injection, copies)
        texts = self.texts.repeat(copies)
        first_layer = 0 if self._form is None else self._form.first_layer
        before = None if self._trunk is None else self._trunk.repeat_interleave(copies, 0)
        kind: Kind = "alone" if injection is None else "prefix" if injection.prompt is None else "prompt"
        asked = Asked(kind, texts, first_layer, injection, before, edits=self.model.method.edits_of(injection))
        return pool(self.ask(asked), texts.mask, self.model.pooling)

    def _behind(self, injection: Injection | None, copies: int) -> Tensor:
        """The texts' own states, or those of what is read behind them."""
        mask, begun = self._kept_mask, 0 if self._beginning is None else self._beginning.mask.shape[1]
        kept = as_kept_texts(self._kept, mask, self.model.backbone.facts, begun)
        if injection is None:
            return pool(kept.hidden, kept.text_mask, self.model.pooling).repeat_interleave(copies, 0)

        def read(part: Injection, rows: Tensor) -> Tensor:
            seen, before = mask[rows // copies], self._kept[rows // copies]
            return self.ask(Asked("behind", Texts(seen.long(), seen, None), injection=part, before=before))

        found = prompts_by_length(read, injection.after(begun), len(mask), self.model.backbone.pass_cost)
        found = torch.cat([kept.beginning.repeat_interleave(copies, 0), found], dim=1)
        return pool(found, injection.mask, self.model.pooling)

    @property
    def _form(self) -> Form | None:
        return self.model.method.form

    @cached_property
    def _trunk(self) -> Tensor | None:
        if self._form is None or self._form.first_layer == 0:
            return None
        return self.ask(Asked("trunk", self.texts, self._form.first_layer))

    @cached_property
    def _kept(self) -> Tensor:
        return self.ask(Asked("kept", self.texts, injection=self._beginning))

    @property
    def _kept_mask(self) -> Tensor:
        """[R, T + S] bool, of the kept states."""
        seen = self.texts.mask.bool()
        if self._beginning is not None:
            seen = torch.cat([seen, self._beginning.mask.bool()], dim=1)
        return seen.sort(dim=1, descending=True, stable=True).values

    @cached_property
    def _beginning(self) -> Injection | None:
        return self.model.beginning(len(self.texts.ids))

    def start(self, labels: Tensor, /) -> Tensor | None:
        start = self.model.label_start
        return None if start is None else start[labels]

    def likelihood(self, labels: Tensor, /) -> Tensor:
        assert self.model.continuations is not None, "the model was built without the labels' continuations"
        kept = self._kept if self.model.backbone.keeps_texts else None
        words, copies = self.model.continuations[labels.flatten()], labels.shape[1]

        def read(rows: Tensor, width: int) -> Tensor:
            texts, before = self.texts.select(rows // copies), None if kept is None else kept[rows // copies]
            return self.ask(Asked("likelihood", texts, before=before, words=words[rows, :width]))

        spare = self.model.backbone.pass_cost
        return by_length(read, words != NO_TOKEN, len(labels), spare).view_as(labels)


def read_together(backbone: FrozenBackbone, asked: Sequence[Asked], positions: int) -> tuple[list[Tensor], int]:
    """Answers all that is asked, in as few forward passes as their kinds allow, each of at most `positions` tokens.

    A row that is longer is read alone. One asker gets, bit for bit, what it would get from the backbone by itself, as
    far as its rows fit one pass; among others its numbers may differ in the last digits. Returns the answers, in order,
    and the number of passes.
    """
    answers: dict[int, list[Tensor]] = {place: [] for place in range(len(asked))}
    passes = 0
    for group in _alike(asked):
        for pieces in _passes([(place, asked[place]) for place in group], positions):
            parts = [part for _, part in pieces]
            found = _read(backbone, _joined(parts)).split([len(part) for part in parts])
            for (place, part), rows in zip(pieces, found, strict=True):
                answers[place].append(rows[:, : part.answered] if rows.ndim == 3 else rows)
            passes += 1
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in answers.values()], passes


def _alike(asked: Sequence[Asked]) -> list[list[int]]:
    """Places of what can be read in one pass, the widest first. A text alone joins those with a prefix or prompt."""
    kinds = {(one.kind, one.first_layer) for one in asked}

    def key(place: int) -> tuple[str, int]:
        kind, first_layer = asked[place].kind, asked[place].first_layer
        with_alone = [other for other in ("prefix", "prompt") if (other, first_layer) in kinds]
        return (with_alone[0] if kind == "alone" and with_alone else kind, first_layer)

    order = sorted(range(len(asked)), key=lambda place: (key(place), -asked[place].width))
    return [list(group) for _, group in groupby(order, key=key)]


def _passes(group: list[Piece], positions: int) -> Iterator[list[Piece]]:
    """Cuts what is asked, the widest first, into passes that are neither too large nor mostly filled up."""
    spare = pass_cost(group[0][1].texts.ids.device)
    pieces: list[Piece] = []
    width = rows = filled = 0
    for place, one in group:
        start = 0
        while start < len(one):
            filled += (len(one) - start) * (width - one.width) if pieces else 0
            room = positions // max(width, one.width) - rows
            if pieces and (room < 1 or filled > spare):
                yield pieces
                pieces, width, rows, filled = [], 0, 0, 0
                continue
            stop = min(len(one), start + max(room, 1))
            pieces.append((place, one if stop - start == len(one) else one.part(start, stop)))
            width, rows, start = max(width, one.width), rows + stop - start, stop
    yield pieces


def _joined(parts: list[Asked]) -> Asked:
    """One request that holds the rows of all."""
    if len(parts) == 1:
        return parts[0]
    kind: Kind = next((part.kind for part in parts if part.kind != "alone"), "alone")
    width = max(part.texts.ids.shape[1] for part in parts)
    has_types = any(part.texts.types is not None for part in parts)
    texts = Texts(
        torch.cat([_widen(part.texts.ids, width) for part in parts]),
        torch.cat([_widen(part.texts.mask, width) for part in parts]),
        torch.cat([_types(part.texts, width) for part in parts]) if has_types else None,
    )
    before = [_widen(part.before, width) for part in parts if part.before is not None]
    words = [part.words for part in parts if part.words is not None]
    longest = max((one.shape[1] for one in words), default=0)
    return Asked(
        kind,
        texts,
        parts[0].first_layer,
        _joined_injections(parts),
        torch.cat(before) if before else None,
        torch.cat([_widen(one, longest, NO_TOKEN) for one in words]) if words else None,
        edits_by_rows([(len(part), part.edits) for part in parts]),
    )


def _joined_injections(parts: list[Asked]) -> Injection | None:
    """A row for each; shorter ones, and those of texts that are read alone, have holes at the end."""
    given = [part.injection for part in parts if part.injection is not None]
    if not given:
        return None
    longest = max(one.mask.shape[1] for one in given)
    name = "prompt" if given[0].prompt is not None else "prefix"
    like: Tensor = getattr(given[0], name)
    masks, values = [], []
    for part in parts:
        if part.injection is None:
            masks.append(given[0].mask.new_zeros(len(part), longest, dtype=torch.bool))
            values.append(like.new_zeros(len(part), longest, like.shape[2]))
        else:
            masks.append(_widen(part.injection.mask.bool(), longest, False))
            values.append(_widen(getattr(part.injection, name).to(like.dtype), longest))
    return Injection(torch.cat(masks), **{name: torch.cat(values)})


def _types(texts: Texts, width: int) -> Tensor:
    """Of a single text they are all 0, which is what every backbone assumes without them."""
    return _widen(torch.zeros_like(texts.ids) if texts.types is None else texts.types, width)


def _widen(values: Tensor, width: int, fill: float = 0) -> Tensor:
    """[R, T] or [R, T, H] -> the same with T = width."""
    after = (0, 0, 0, width - values.shape[1]) if values.ndim == 3 else (0, width - values.shape[1])
    return functional.pad(values, after, value=fill)


def _read(backbone: FrozenBackbone, asked: Asked) -> Tensor:
    texts = asked.texts
    if asked.kind == "likelihood":
        assert asked.words is not None
        kept = None if asked.before is None else as_kept_texts(asked.before, texts.mask, backbone.facts)
        return backbone.likelihood(texts.ids, texts.mask, asked.words, kept)
    if asked.kind == "trunk":
        return backbone.trunk(texts.ids, texts.mask, asked.first_layer, texts.types).states
    if asked.kind == "kept":
        return of_kept_texts(backbone.keep(texts.ids, texts.mask, asked.injection))
    if asked.kind == "behind":
        assert asked.before is not None and asked.injection is not None
        return backbone.behind(as_kept_texts(asked.before, texts.mask, backbone.facts), asked.injection)
    trunk = None if asked.before is None else Trunk(asked.first_layer, asked.before)
    return backbone(texts.ids, texts.mask, asked.injection, texts.types, trunk=trunk, edits=asked.edits)
