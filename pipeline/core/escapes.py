"""Text from elsewhere (labels, texts, paths), made harmless for the place where it is shown."""

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""The zero-width (non-)joiner: Persian, several scripts of India and emoji cannot be written without them."""
_ENTITIES = str.maketrans({character: f"&#{ord(character)};" for character in "~$"} | {"&": "&amp;", "<": "&lt;"})
_MARKUP = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")
"""What a backslash keeps from being markup in every dialect of Markdown; an underscore inside a word is not."""


def visible(text: str, *, keep: str = "") -> str:
    """`text` for a terminal or a page: every control, format and line separator character is written as `\\u001b`.

    So are escape sequences, bells, carriage returns, right-to-left marks and halves of surrogate pairs; characters in
    `keep` stay. A line of JSON keeps its value, since these are JSON's own escapes.
    """
    return text.translate(_Escapes(keep))


def for_markdown(text: str) -> str:
    """`text` on one line, as a Markdown table, headline or paragraph shows it literally: no link, HTML or new cell."""
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", visible(" ".join(text.split())).translate(_ENTITIES))
    # GitHub and the hub make links of bare addresses.
    return re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}&#46;", escaped.replace("://", "&#58;//"))


def for_code_span(text: str) -> str:
    """`text` between backticks, as a Markdown paragraph (not a table cell) shows it literally."""
    return f"`{visible(' '.join(text.split())).replace('`', chr(39))}`"


class _Escapes(dict[int, str]):
    """A table for `str.translate`, filled as characters are met."""

    def __init__(self, keep: str) -> None:
        super().__init__({ord(character): character for character in keep + JOINERS})

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            units = character.encode("utf-16-be", "surrogatepass").hex()
            character = "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
        self[code] = character
        return character
