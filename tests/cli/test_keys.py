"""`ltune keys`: every key of every section with its default, and examples that are configs."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from pipeline.cli import main
from pipeline.cli.keys import COMPARE, EXAMPLES, described, sections
from pipeline.comparison.config import ComparisonConfig, load_comparison
from pipeline.config import RunConfig, config_keys, load_config
from pipeline.methods import METHOD_CONFIGS

SECTIONS = [field.annotation for name, field in RunConfig.model_fields.items() if name != "method"]
WHOLE = """\
run: {dir: runs/mine}
backbone: {name_or_path: some/model}
data: {train: all.csv, split: 0.1}
method: {name: lt_prefix}
"""


def keys_in(text: str) -> set[str]:
    return {line.split("=")[0].strip() for line in text.splitlines() if "=" in line}


def test_the_list_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == [*RunConfig.model_fields, "compare"]


@pytest.mark.parametrize("section", sorted(RunConfig.model_fields))
def test_a_section_has_all_its_keys(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", section]) == 0
    shown = keys_in(capsys.readouterr().out)
    assert shown >= {key for key, _, _ in config_keys() if key.startswith(f"{section}.")}


def test_keys_of_a_method_stand_below_its_name() -> None:
    parts = described("method").split("\n  method.name=")[1:]
    assert len(parts) == len(METHOD_CONFIGS) - 1  # the first begins the text
    for method in METHOD_CONFIGS:
        name = method.model_fields["name"].default
        [part] = [part for part in described("method").split("  method.name=") if part.startswith(f"{name}\n")]
        listed = {line.split("=")[0].strip() for line in part.splitlines() if line.startswith("    method.")}
        assert listed == {f"method.{key}" for key in method.model_fields} - {"method.name"}


def test_a_comparison_has_all_its_keys() -> None:
    wanted = {name for name, field in ComparisonConfig.model_fields.items() if not field.exclude}
    assert keys_in(described(COMPARE)) >= wanted


@pytest.mark.parametrize("section", sections())
def test_examples_are_configs(section: str, tmp_path: Path) -> None:
    """A section's example takes the place of that section; a comparison's is whole."""
    file = tmp_path / "c.yaml"
    assert EXAMPLES[section].splitlines()[0] in described(section)
    if section == COMPARE:
        file.write_text(EXAMPLES[section])
        comparison = load_comparison(file)
        assert set(comparison.methods) == {"lt_prefix", "wide", "probe"}
        return
    rest = [line for line in WHOLE.splitlines() if not line.startswith(f"{section}:")]
    file.write_text("\n".join([*rest, EXAMPLES[section]]))
    found = getattr(load_config(file), section)
    assert isinstance(found, BaseModel) and found.model_fields_set - {"name"}


def test_an_unknown_section_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "dta"]) == 2
    assert "there is no section 'dta' (nearest: 'data')" in capsys.readouterr().err


def literals(annotation: Any) -> set[str]:
    """The words that a value of this type may be, or hold."""
    if get_origin(annotation) is Literal:
        return {value for value in get_args(annotation) if isinstance(value, str)}
    return {word for part in get_args(annotation) for word in literals(part)}


@pytest.mark.parametrize("model", [*SECTIONS, *METHOD_CONFIGS, ComparisonConfig])
def test_a_key_names_every_word_that_it_may_be(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        words = literals(field.annotation)
        unnamed = {word for word in words if len(words) > 1 and word not in (field.description or "")}
        assert not unnamed, f"{name}: {unnamed}"
