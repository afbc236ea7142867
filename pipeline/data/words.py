"""The words around a text: a template of the config, and the chat template of the backbone's tokenizer."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from pipeline.core.errors import UserError, one_line
from pipeline.core.templates import TEXTS, filled, has_field
from pipeline.data.tokenizer import chat_template, encode, special_ids, special_texts

ANCHOR = "a"
"""A word that no tokenizer joins with the next one."""
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Around the name of a field, while the words are taken apart: characters of private use."""
ONE_DAY = "26 Jul 2024"
"""In a chat template that names the day: what a text becomes would depend on when that is."""


@dataclass(frozen=True)
class Words:
    """Puts words around texts and makes tokens of both, as of one string; special tokens in the texts stay text.

    A *row* is a text, or the two texts of a pair. Raises UserError where a chat template is missing or of no use.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    chat: bool
    """In its chat template, with what comes before an answer behind it."""

    def tokens(self, rows: Sequence[Sequence[str]]) -> list[list[int]]:
        """Token ids of each row in its words.

        They are those of the whole string. Where that has more special tokens than the words alone, some were written
        in the text: what stands between those of the words is then read as text.
        """
        texts = [self.around(row) for row in rows]
        whole = self._whole(texts)
        if not self.tokenizer.split_special_tokens:
            return whole
        found = zip(rows, texts, whole, strict=True)
        return [ids if self._special(text, ids) == self._own_special else self._apart(row) for row, text, ids in found]

    def cut(self, row: Sequence[str], max_length: int) -> list[int]:
        """Token ids of a row of whose texts as much is kept as fits; of a pair, the longer one is cut first."""

        def kept(most: int) -> list[int]:
            return self.tokens([[text[:most] for text in row]])[0]

        lengths = range(max(map(len, row)))
        return kept(max(0, bisect_right(lengths, max_length, key=lambda most: len(kept(most))) - 1))

    def around(self, row: Sequence[str]) -> str:
        """The row in its words."""
        message = row[0] if self.template is None else filled(self.template, dict(zip(TEXTS, row, strict=False)))
        return self._in_chat(message) if self.chat else message

    @property
    def fields(self) -> list[str]:
        """What the words are put around."""
        return [name for name in TEXTS if self.template is not None and has_field(self.template, name)] or ["text"]

    @cached_property
    def alone(self) -> list[int]:
        """Tokens of the words without a text."""
        return self.tokens([["" for _ in self.fields]])[0]

    @property
    def end_needs_space(self) -> bool:
        """Is there a space before what is read behind them? Not behind white space and special tokens."""
        end = self.around([ANCHOR for _ in self.fields])
        return not (end[-1].isspace() or end.endswith(tuple(special_texts(self.tokenizer))))

    def check(self, max_length: int) -> None:
        """UserError where they leave no room for a text, or a chat template leaves the text out."""
        if missing := set(self.fields) - set(self._parts[1::2]):
            raise UserError(
                f"the chat template of the backbone's tokenizer leaves out the {missing.pop()} it is to send"
            )
        if len(self.alone) >= max_length:
            sources = {"data.template": self.template is not None, "the chat template": self.chat}
            names = " and ".join(name for name, given in sources.items() if given)
            raise UserError(
                f"the words of {names} have {len(self.alone)} tokens, and data.max_length={max_length} leaves no room "
                "for a text between them: set a larger one, or fewer words"
            )

    def _in_chat(self, message: str) -> str:
        template = chat_template(self.tokenizer)
        if "strftime_now" in template:
            template = f"{{% macro strftime_now(format) -%}}{ONE_DAY}{{%- endmacro %}}{template}"
        try:
            said = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": message}],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # whatever the template does wrong
            raise UserError(
                f"the chat template of the backbone's tokenizer cannot be used: {one_line(error)}"
            ) from error
        return str(said)

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        # A chat template writes the first token itself.
        encoded = encode(self.tokenizer, texts, add_special_tokens=not self.chat, special_tokens=True)
        return list(encoded["input_ids"])

    def _apart(self, row: Sequence[str]) -> list[int]:
        """Tokens of a row where only the special tokens of the words are tokens: what is between is read by itself."""
        ids: list[int] = []
        for place, piece in enumerate(self._pieces(dict(zip(TEXTS, row, strict=False)))):
            options = {"add_special_tokens": False, "special_tokens": bool(place % 2)}
            ids += encode(self.tokenizer, [piece], **options)["input_ids"][0] if piece else []
        before, behind = ([], []) if self.chat else self._frame
        return [*before, *ids, *behind]

    def _pieces(self, texts: dict[str, str]) -> list[str]:
        """The row in its words, in pieces: every second one is a special token of the words."""
        pieces = [""]
        for place, part in enumerate(self._parts):
            first, *others = [texts[part]] if place % 2 else self._special_pattern.split(part)
            pieces[-1] += first
            pieces += others
        return pieces

    @cached_property
    def _parts(self) -> list[str]:
        """The words, and between them the fields."""
        marked = self.around([f"{_OPEN}{name}{_CLOSE}" for name in self.fields])
        return re.split(f"{_OPEN}({'|'.join(self.fields)}){_CLOSE}", marked)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(special_texts(self.tokenizer), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        return frame(self.tokenizer)

    @cached_property
    def _special_ids(self) -> set[int]:
        return special_ids(self.tokenizer) - {self.tokenizer.unk_token_id}

    @cached_property
    def _own_special(self) -> tuple[list[int], int]:
        text = self.around([ANCHOR for _ in self.fields])
        return self._special(text, self._whole([text])[0])

    def _special(self, text: str, ids: Sequence[int]) -> tuple[list[int], int]:
        """Its special tokens, and how often the unknown one is written in it, which words may become too."""
        unknown = self.tokenizer.unk_token
        return [id for id in ids if id in self._special_ids], text.count(unknown) if unknown else 0


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind every text."""
    [inner] = encode(tokenizer, [ANCHOR], add_special_tokens=False)["input_ids"]
    [outer] = encode(tokenizer, [ANCHOR])["input_ids"]
    start = next(start for start in range(len(outer)) if outer[start : start + len(inner)] == inner)
    return outer[:start], outer[start + len(inner) :]
