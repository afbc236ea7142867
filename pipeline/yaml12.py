"""YAML without the surprises of version 1.1, which PyYAML reads: here `no` is a word and 1e-3 a number."""

import re
from typing import Any

import yaml

# The core schema of YAML 1.2.2, section 10.3.2, without hexadecimal and octal numbers: tag -> pattern, first characters
_SCALARS = {
    "null": ("~|null|Null|NULL|", "~nN"),
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": ("[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """First character -> what a plain scalar may be, in order; the empty scalar is null."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, (pattern, first) in _SCALARS.items():
        for character in [*first, *([""] if name == "null" else [])]:
            table.setdefault(character, []).append((f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that is there twice: PyYAML would silently drop the first."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Decimal only: 010 is ten."""
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    # Quotes strings that either version would take for something else.
    yaml_implicit_resolvers = {
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _resolvers().get(first, [])
        for first in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _resolvers().keys()
    }


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load_yaml(text: str) -> Any:
    """The value in a YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # a SafeLoader


def dump_yaml(value: Any) -> str:
    """A text from which `load_yaml` makes the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
