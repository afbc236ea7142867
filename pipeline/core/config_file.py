"""A config file as nested dicts: read from YAML, changed by `key=value`."""

from pathlib import Path
from typing import Any

from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.core.bounds import LARGEST_CONFIG, read_text
from pipeline.core.errors import UserError, one_line
from pipeline.core.yaml import load_yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises UserError where it cannot be read, or holds something else."""
    try:
        values = load_yaml(read_text(path, LARGEST_CONFIG))
    except MarkedYAMLError as error:
        raise UserError(f"config file '{path}' cannot be read: {_place(error)}") from error
    except OSError as error:
        raise UserError(f"config file '{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, YAMLError) as error:
        raise UserError(f"config file '{path}' cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"config file '{path}' does not hold a 'section: {{key: value}}' mapping")
    # A section whose keys are all commented out reads as null.
    return {name: section for name, section in values.items() if section is not None}


def _place(error: MarkedYAMLError) -> str:
    """The fault without the parser's quotations: `line 2: found duplicate key "run"`."""
    line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
    return f"{line}{str(error.problem).split(' with value')[0]}"


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets `a.b=value` in a nested dict; the value is read as YAML, but has no comments: a shell gives it as meant.

    Raises UserError where it is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not an override: write section.key=value")
    try:
        value = load_yaml(text)
    except MarkedYAMLError as error:
        raise UserError(f"the value of '{key}' is not YAML ({error.problem}): {text}") from error
    except (YAMLError, ValueError) as error:
        raise UserError(f"the value of '{key}' cannot be read ({one_line(error)}): {text}") from error
    if str(value).count("#") < text.count("#"):  # one began a comment
        if isinstance(value, list | dict):
            raise UserError(f"the value of '{key}' ends at a #: put the word that holds it in quotes: {text}")
        value = text.strip()
    set_key(values, key, value)


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b` in a nested dict."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[last] = value
