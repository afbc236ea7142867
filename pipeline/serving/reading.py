"""What methods ask of one backbone, and how requests of several methods become one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import NO_TOKEN, Injection
from pipeline.backbone.pooling import pool
from pipeline.backbone.trunk import Trunk
from pipeline.methods.model import LTuningModel

PASS_COST = {"cpu": 128, "cuda": 4096}
"""Tokens in whose time a device could begin another pass: as many are filled up in one rather than read in two."""
Kind: TypeAlias = Literal["alone", "prompt", "prefix", "trunk", "likelihood"]


@dataclass(frozen=True)
class Texts:
    """R rows of tokens."""

    ids: Tensor
    """[R, T]"""
    mask: Tensor
    """[R, T], nonzero: real token"""
    types: Tensor | None
    """[R, T] token types of pairs"""

    def repeat(self, copies: int) -> "Texts":
        """Each row `copies` times in a row."""
        types = None if self.types is None else self.types.repeat_interleave(copies, 0)
        return Texts(self.ids.repeat_interleave(copies, 0), self.mask.repeat_interleave(copies, 0), types)


@dataclass(frozen=True)
class Asked:
    """Rows that a method wants to be read; what it gets for them, row by row, is what `Kind` says.

    alone, prompt, prefix: last hidden states [R, T, H], read with that injection or none, from layer `first_layer` on
    where `trunk` has what the layers below made of the texts. trunk: that, [R, T, H]. likelihood: [R] of `behind`.
    """

    kind: Kind
    texts: Texts
    first_layer: int = 0
    injection: Injection | None = None
    trunk: Tensor | None = None
    """[R, T, H]"""
    behind: Tensor | None = None
    """[R, Q] tokens of a hypothesis, filled up with NO_TOKEN"""

    def __len__(self) -> int:
        return len(self.texts.ids)

    @property
    def width(self) -> int:
        """Positions that each row takes."""
        more = 0 if self.injection is None else self.injection.mask.shape[1]
        return self.texts.ids.shape[1] + more + (0 if self.behind is None else self.behind.shape[1])

    def part(self, start: int, stop: int) -> "Asked":
        """Some of the rows."""
        rows = slice(start, stop)
        types = None if self.texts.types is None else self.texts.types[rows]
        return replace(
            self,
            texts=Texts(self.texts.ids[rows], self.texts.mask[rows], types),
            injection=None if self.injection is None else self.injection.select(torch.arange(start, stop)),
            trunk=None if self.trunk is None else self.trunk[rows],
            behind=None if self.behind is None else self.behind[rows],
        )


Piece: TypeAlias = tuple[int, Asked]
"""Some rows of what is asked, and its place."""


@dataclass
class AskingReader:
    """Lets a method's `scores` read the texts of one batch by asking; see `pipeline.methods.base.Reader`."""

    model: LTuningModel
    texts: Texts
    ask: Callable[[Asked], Tensor]
    _trunk: Tensor | None = None

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        first_layer = self.model.method.first_layer
        if first_layer and self._trunk is None:
            self._trunk = self.ask(Asked("trunk", self.texts, first_layer))
        trunk = None if self._trunk is None else self._trunk.repeat_interleave(copies, 0)
        kind: Kind = "alone" if injection is None else "prefix" if injection.prompt is None else "prompt"
        texts = self.texts.repeat(copies)
        return pool(self.ask(Asked(kind, texts, first_layer, injection, trunk)), texts.mask, self.model.pooling)

    def start(self, labels: Tensor, /) -> Tensor | None:
        start = self.model.label_start
        return None if start is None else start[labels]

    def likelihood(self, labels: Tensor, /) -> Tensor:
        assert self.model.continuations is not None, "the model was built without the labels' continuations"
        return self.ask(Asked("likelihood", self.texts, behind=self.model.continuations[labels]))


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
                answers[place].append(rows[:, : part.texts.ids.shape[1]] if rows.ndim == 3 else rows)
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
    spare = PASS_COST.get(group[0][1].texts.ids.device.type, PASS_COST["cuda"])
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
    trunks = [_widen(part.trunk, width) for part in parts if part.trunk is not None]
    behind = [part.behind for part in parts if part.behind is not None]
    longest = max((one.shape[1] for one in behind), default=0)
    return Asked(
        kind,
        texts,
        parts[0].first_layer,
        _joined_injections(parts),
        torch.cat(trunks) if trunks else None,
        torch.cat([_widen(one, longest, NO_TOKEN) for one in behind]) if behind else None,
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
        assert asked.behind is not None
        return backbone.likelihood(texts.ids, texts.mask, asked.behind)
    if asked.kind == "trunk":
        return backbone.trunk(texts.ids, texts.mask, asked.first_layer, texts.types).states
    trunk = None if asked.trunk is None else Trunk(asked.first_layer, asked.trunk)
    return backbone(texts.ids, texts.mask, asked.injection, texts.types, trunk=trunk)
