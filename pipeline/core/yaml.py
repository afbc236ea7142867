"""YAML 1.2, in which `no` is a word and 1e-3 a number; a key that is there twice is an error. (PyYAML reads 1.1.)"""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML


def load_yaml(text: str) -> Any:
    """The value in a YAML text; plain data only. Raises ruamel.yaml.YAMLError."""
    return YAML(typ="safe", pure=True).load(text)


def dump_yaml(value: Any) -> str:
    """A text from which `load_yaml` makes the same value; keys stay in order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()
