"""The hypothesis of each label, as text and as tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from pipeline.backbone.injection import NO_TOKEN
from pipeline.core.errors import UserError, nearest
from pipeline.data.config import LabelsConfig, weighted
from pipeline.data.labels import label_name
from pipeline.data.tokenizer import encode
from pipeline.data.words import ANCHOR, frame


class HypothesisTokens(NamedTuple):
    """K hypotheses as the backbone reads them, padded on the right."""

    input_ids: Tensor
    """[K, S + P] long"""
    mask: Tensor
    """[K, S + P] bool"""
    opening: int = 0
    """S, tokens at the beginning that are read but are no part of the hypotheses."""

    @property
    def kept(self) -> Tensor:
        """The hypotheses' own mask [K, P]."""
        return self.mask[:, self.opening :]


class Hypotheses(NamedTuple):
    """The hypotheses of K labels, J in all: a label's follow each other, in the order of the labels."""

    texts: list[str]
    weights: list[list[float]] | None = None
    """[K] of each label's, with sum 1; None: each label has one."""

    @classmethod
    def of(cls, labels: Iterable[Mapping[str, float]]) -> "Hypotheses":
        """By label: each hypothesis and its weight."""
        found = list(labels)
        texts = [text for own in found for text in own]
        if len(texts) == len(found):
            return cls(texts)
        return cls(texts, [[weight / sum(own.values()) for weight in own.values()] for own in found])

    @property
    def by_label(self) -> list[dict[str, float]]:
        """Of each label: its hypotheses and their weights."""
        texts, weights = iter(self.texts), self.weights or [[1.0]] * len(self.texts)
        return [{next(texts): weight for weight in own} for own in weights]


def hypotheses(names: Sequence[str], config: LabelsConfig) -> Hypotheses:
    """The hypotheses of each label: its own in `labels.texts` if there are some, else the template's.

    Raises:
        UserError: a hypothesis for an unknown label, or two labels with the same.
    """
    own = {label_name(name): text for name, text in config.texts.items()}
    known = {label_name(name) for name in names}
    for name in own:
        if name not in known:
            raise UserError(f"labels.texts has a text for {name!r}, which is not a label{nearest(name, names)}")
    found = {name: config.hypotheses(name) for name in names}
    found |= {name: weighted(own[label_name(name)]) for name in names if label_name(name) in own}
    _refuse_twins(((name, text) for name, texts in found.items() for text in texts), "have the same hypothesis")
    return Hypotheses.of(found.values())


def encode_hypotheses(
    tokenizer: PreTrainedTokenizerBase, hypotheses: Sequence[str], max_length: int
) -> HypothesisTokens:
    """Tokenizes the hypotheses as texts of their own.

    Raises:
        UserError: two hypotheses become the same tokens, or one becomes none or more than `max_length`.
    """
    rows = encode(tokenizer, hypotheses)["input_ids"]
    _check_rows(hypotheses, rows, max_length)
    return _padded(rows)


def encode_behind(
    tokenizer: PreTrainedTokenizerBase, hypotheses: Sequence[str], max_length: int, *, space: bool
) -> HypothesisTokens:
    """The tokens that the hypotheses become behind a text, after the special ones that open a text.

    `space`: as for `continuations`. Raises UserError as `encode_hypotheses` does.
    """
    rows = [row[row != NO_TOKEN].tolist() for row in continuations(tokenizer, hypotheses, None, space=space)]
    _check_rows(hypotheses, rows, max_length)
    opening, _ = frame(tokenizer)
    return _padded([[*opening, *row] for row in rows], len(opening))


def all_in_one(tokens: HypothesisTokens, length: int) -> HypothesisTokens:
    """All hypotheses in one row [1, length], one behind the other: cut at so many tokens, or begun again until then."""
    row = tokens.input_ids[tokens.mask]
    ids = row.repeat(-(-length // len(row)))[:length].unsqueeze(0)
    return HypothesisTokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _check_rows(hypotheses: Sequence[str], rows: Sequence[list[int]], max_length: int) -> None:
    _refuse_twins(zip(hypotheses, map(tuple, rows), strict=True), "become the same tokens")
    for text, row in zip(hypotheses, rows, strict=True):
        if not 0 < len(row) <= max_length:
            raise UserError(
                f"the hypothesis {text!r} has {len(row)} tokens; it must have 1 to {max_length} (data.max_length)"
            )


def _padded(rows: Sequence[list[int]], opening: int = 0) -> HypothesisTokens:
    input_ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return HypothesisTokens(input_ids, torch.arange(input_ids.shape[1]) < lengths[:, None], opening)


def continuations(
    tokenizer: PreTrainedTokenizerBase, hypotheses: Sequence[str], max_length: int | None, *, space: bool = True
) -> Tensor:
    """The tokens that each hypothesis becomes where it goes on a text: [K, Q], padded with NO_TOKEN.

    Behind a space, or without `space` as behind a line's end. Cut from a longer text, since tokenizers write the first
    word of a text in other ways.

    Raises:
        UserError: a hypothesis of more than `max_length` tokens.
    """
    texts = [ANCHOR, *(f"{ANCHOR} {text}" for text in hypotheses)]
    if not space:
        texts = [f"{ANCHOR}\n", *(f"{ANCHOR}\n{text.lstrip()}" for text in hypotheses)]
    before, *joined = encode(tokenizer, texts, add_special_tokens=False)["input_ids"]
    assert all(row[: len(before)] == before for row in joined), f"the tokenizer joins {texts[0]!r} with what follows"
    rows = [row[len(before) :] for row in joined]
    for text, row in zip(hypotheses, rows, strict=True):
        if max_length is not None and len(row) > max_length:
            raise UserError(
                f"the hypothesis {text!r} has {len(row)} tokens, but behind a text of data.max_length tokens the "
                f"backbone has only {max(0, max_length)} positions left: set a smaller data.max_length"
            )
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=NO_TOKEN)


def _refuse_twins(forms: Iterable[tuple[str, str | tuple[int, ...]]], complaint: str) -> None:
    """`forms`: each label (or hypothesis) and what must be its own."""
    first: dict[str | tuple[int, ...], str] = {}
    for name, form in forms:
        if first.setdefault(form, name) != name:
            raise UserError(
                f"the labels {first[form]!r} and {name!r} {complaint}: reword one (labels.template, labels.texts), "
                "or write both alike in the data if they are one label"
            )
