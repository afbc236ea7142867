"""Templates of the config: words with fields such as `{label}` or `{text}`, which are replaced by what they name."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.core.bounds import LONGEST_TEMPLATE

TEXTS = ("text", "text_pair")
"""Fields of a text's template, and columns of a split."""
_OTHER_FIELD = re.compile(r"\{[^{}]{0,40}\}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its value, as it is, in the place of each {field}; {{ and }} are braces.

    Not `str.format`, in which a template could name attributes and widths.
    """
    written = {_mark(name): value for name, value in values.items()} | {"{{": "{", "}}": "}"}
    return _marks(tuple(values)).sub(lambda mark: written[mark[0]], template)


def checked(template: str, fields: Sequence[str]) -> str:
    """The same template. ValueError unless it has the first of these fields, and none but these."""
    needed, rest = _mark(fields[0]), _marks(fields).sub("", template)
    if strays := _OTHER_FIELD.findall(rest):
        others = "".join(f", may contain {_mark(name)}," for name in fields[1:])
        raise ValueError(f"the template must contain {needed}{others} and no other field, such as {strays[0]}")
    if set("{}") & set(rest):
        raise ValueError("it is not a template: a brace is not closed; write a literal brace as {{ or }}")
    if not has_field(template, fields[0], fields):
        raise ValueError(f"the template must contain {needed}, once at least")
    return template


def has_field(template: str, field: str, fields: Sequence[str] = TEXTS) -> bool:
    """Whether it has this one of its fields; {{text}} is not one."""
    return _mark(field) in _marks(fields).findall(template)


def check_words(template: str | None, chat: bool, text_pair: str | None) -> None:
    """ValueError where the keys of `data` that put words around a text do not go with its columns."""
    if template is None:
        if chat and text_pair is not None:
            raise ValueError(
                "data.chat makes one message of a text, but data.text_pair is a second one: say how they are put "
                'together with data.template, such as "{text}\\n{text_pair}"'
            )
    elif has_field(template, "text_pair") and text_pair is None:
        raise ValueError("data.template contains {text_pair}, but data.text_pair names no column")
    elif text_pair is not None and not has_field(template, "text_pair"):
        raise ValueError("data.template must contain {text_pair} too, since data.text_pair is set")


def _mark(field: str) -> str:
    return f"{{{field}}}"


def _marks(fields: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, ("{{", "}}", *map(_mark, fields)))))


TextTemplate = Annotated[
    str, Field(max_length=LONGEST_TEMPLATE), AfterValidator(lambda template: checked(template, TEXTS))
]
"""Words around a text, or around a pair of texts."""
LabelTemplate = Annotated[
    str, Field(max_length=LONGEST_TEMPLATE), AfterValidator(lambda template: checked(template, ("label",)))
]
"""Words around the name of a label."""
