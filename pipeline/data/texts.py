"""How texts become tokens, in training as in prediction: in the words around them, and cut to data.max_length."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.backbone.facts import Form
from pipeline.core.errors import UserError
from pipeline.data.batches import by_row
from pipeline.data.hypotheses import HypothesisTokens, encode_behind, encode_hypotheses
from pipeline.data.tokenizer import check_vocabulary, encode
from pipeline.data.words import Words


@dataclass(frozen=True)
class TextEncoder:
    """Makes tokens of texts; the arguments but the first are keys of `data`."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    template: str | None = None
    chat: bool = False

    def encode(self, columns: Sequence[list[str]]) -> dict[str, list[Any]]:
        """`input_ids`, `token_type_ids` of pairs that are read as two texts, and `truncated`, of each row.

        `columns`: of texts, or two, the parts of pairs.
        """
        encoded = self._tokens(columns)
        truncated = [len(row) > self.max_length for row in encoded["input_ids"]]
        long = [index for index, too_long in enumerate(truncated) if too_long]
        cut = self._cut([[column[index] for index in long] for column in columns]) if long else {}
        for name, rows in cut.items():
            for index, row in zip(long, rows, strict=True):
                encoded[name][index] = row
        return encoded | {"truncated": truncated}

    def rows(self, columns: Sequence[list[str]]) -> list[dict[str, Any]]:
        """The same by row, for `scoring.score`. Raises UserError, with its position, for a text without a token."""
        encoded = self.encode(columns)
        for number, ids in enumerate(encoded["input_ids"], start=1):
            if not ids:
                raise UserError(f"text {number} becomes no token at all: {columns[0][number - 1]!r}")
        return by_row(encoded)

    def hypotheses(self, hypotheses: Sequence[str], form: Form | None) -> HypothesisTokens:
        """Tokens of the labels' hypotheses: as texts of their own, or as they go on a text where that `form` is behind.

        Raises UserError where two become the same tokens, or one becomes none or more than `max_length`.
        """
        if form is not None and form.is_behind:
            return encode_behind(self.tokenizer, hypotheses, self.max_length, space=self.end_needs_space)
        return encode_hypotheses(self.tokenizer, hypotheses, self.max_length)

    @cached_property
    def words(self) -> Words | None:
        """What is put around a text."""
        return Words(self.tokenizer, self.template, self.chat) if self.template is not None or self.chat else None

    @property
    def around(self) -> list[int]:
        """Tokens of the words around a text."""
        return self.words.alone if self.words else []

    @property
    def end_needs_space(self) -> bool:
        """Is there a space between a text, with its words, and what is read behind it?"""
        return self.words is None or self.words.end_needs_space

    def check(self, vocab_size: int | None) -> None:
        """UserError where the words cannot be used, and for what `check_vocabulary` refuses."""
        if self.words:
            self.words.check(self.max_length)
        check_vocabulary(self.tokenizer, vocab_size, self.around)

    def _tokens(self, columns: Sequence[list[str]]) -> dict[str, list[Any]]:
        if self.words is None:
            return self._plain(columns, None)
        return {"input_ids": self.words.tokens(list(zip(*columns, strict=True)))}

    def _cut(self, columns: Sequence[list[str]]) -> dict[str, list[Any]]:
        if self.words is None:
            return self._plain(columns, self.max_length)
        return {"input_ids": [self.words.cut(row, self.max_length) for row in zip(*columns, strict=True)]}

    def _plain(self, columns: Sequence[list[str]], max_length: int | None) -> dict[str, list[Any]]:
        encoded = encode(self.tokenizer, *columns, max_length=max_length)
        # Of a single text the type ids are all 0, which is what every backbone assumes without them.
        names = ["input_ids"] + ["token_type_ids"] * (len(columns) == 2 and "token_type_ids" in encoded)
        return {name: encoded[name] for name in names}
