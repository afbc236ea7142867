"""JSON objects as rows: what is wrong with one is said, where the json module would keep the last of equal keys."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any


class JsonObject(dict[str, Any]):
    """An object that remembers which keys it was given more than once."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = JsonObject(pairs)
    if len(value) < len(pairs):
        value.repeated = frozenset(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def row_of_line(line: str, wanted: Iterable[str]) -> JsonObject:
    """The object on a line. Raises ValueError for anything else on it, and for a wanted key that is there twice."""
    line = line.strip(" \t\r\n")
    try:
        value, end = DECODER.raw_decode(line)
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if end < len(line):
        raise ValueError(f"not one JSON object: character {end + 1} on goes on with {line[end : end + 20]!r}")
    return row_of_value(value, wanted)


def row_of_value(value: Any, wanted: Iterable[str]) -> JsonObject:
    """`value`, if it is an object in which no wanted key is there twice. Raises ValueError."""
    if not isinstance(value, JsonObject):
        raise ValueError(f"a JSON {type(value).__name__} where an object is needed")
    for key in wanted:
        if key in value.repeated:
            raise ValueError(f"the key {key!r} is there twice")
    return value
