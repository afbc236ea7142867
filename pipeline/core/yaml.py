"""YAML 1.2, in which `no` is a word and 1e-3 a number; a key that is there twice is an error. (PyYAML reads 1.1.)"""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.representer import SafeRepresenter

from pipeline.core.bounds import MOST_DIGITS, MOST_YAML_VALUES

_BREAKS = frozenset("\x85\u2028\u2029")


def load_yaml(text: str) -> Any:
    """The value in a YAML text; plain data only.

    Raises:
        ruamel.yaml.YAMLError: it is not YAML.
        ValueError: aliases that make too many values or lead back to themselves, too deep nesting, too long a number.
    """
    try:
        if "&" in text:
            _check_aliases(text)
        value = YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError(f"a number has more than {MOST_DIGITS} digits") from None
        raise
    _check_numbers(value)
    return value


def _check_aliases(text: str) -> None:
    """Counts the values as they would be written out, in one pass over the text, in which each alias costs nothing."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    """Anchor and count before, of each list and mapping that the place is in."""
    count = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                raise ValueError(f"'*{event.anchor}' leads back to itself")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, NodeEvent):
            if isinstance(event, CollectionStartEvent):
                opened.append((event.anchor, count))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            count += 1
        if count > MOST_YAML_VALUES:
            raise ValueError(f"its aliases (*name) make more than {MOST_YAML_VALUES:,} values")


def _check_numbers(value: Any) -> None:
    """ValueError for an integer that nothing could show."""
    if isinstance(value, dict):
        for part in value.items():
            _check_numbers(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            _check_numbers(part)
    elif isinstance(value, int) and value.bit_length() > 3.33 * MOST_DIGITS:
        raise ValueError(f"a number has more than {MOST_DIGITS} digits")


class _Representer(SafeRepresenter):
    """Quotes words with line breaks of Unicode's: ruamel.yaml folds them to a space where they stand as they are."""

    def represent_str(self, data: str) -> Any:
        style = '"' if _BREAKS.intersection(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def dump_yaml(value: Any) -> str:
    """A text from which `load_yaml` makes the same value; keys stay in order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()
