"""The dry run: what it prints, and that it and the run agree on what can be trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.core.errors import UserError
from pipeline.methods import METHOD_NAMES
from tests.support.tiny import save_tiny
from tests.support.tiny_run import TEXTS, tiny_config

IMPOSSIBLE = {("full", "int8"), ("full", "int4")}
QUANTIZED = [(name, kind) for name in ("full", "lora", "edit", "lt_prefix") for kind in ("int8", "int4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_tiny(folder / "backbone", "llama_gqa", AutoModelForCausalLM)
    return folder


def both(folder: Path, *overrides: str, **sections: dict[str, Any]) -> tuple[int, int]:
    """Exit statuses of the dry run and of the run itself."""
    config = tiny_config(
        folder, train={"max_steps": 1, "batch_size": 4, "objective": "candidates"}, logging={"trackers": ["jsonl"]}
    )
    file = folder / "given.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json") | sections))
    arguments = ["run", "--config", str(file), *overrides]
    return main([*arguments, "--dry-run"]), main(arguments)


def test_the_plan_is_printed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planned.yaml"
    file.write_text(tiny_config(tmp_path, train={"max_steps": 4, "batch_size": 4}).to_yaml())
    before = sorted(tmp_path.rglob("*"))
    command = ["run", "--config", str(file), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for words in ("train: 13 rows, ", "validation: 6 rows", "labels: 3, at most ", "steps: 4 (4 per epoch of batches"):
        assert words in shown
    assert "tokens per step: " in shown and "total per rank" in shown
    assert "judge: " not in shown, "its head is label_aware"
    assert main([*command, "method.head=fitted", "method.judge=fitted", "train.max_steps=0"]) == 0
    shown = capsys.readouterr().out
    assert f"judge: {13 * 3 + 6 * 3} readings of a text with a label, before the first step" in shown
    assert "steps: none, train.max_steps is 0" in shown and sorted(tmp_path.rglob("*")) == before
    [counts] = [line for line in shown.splitlines() if line.startswith("trainable parameters: ")]
    formula, counted = counts.removeprefix("trainable parameters: ").split(" by formula, ")
    assert counted == f"{formula} by count" and int(formula.replace(",", "")) > 100


@pytest.mark.parametrize(
    ("method", "whole", "injected", "words"),
    [
        ({"name": "prompt", "tokens": 4}, 1, 4, "(1 reading(s) per text, 4 injected tokens each)"),
        ({"name": "lt_prefix", "head": "linear"}, 3, 3 * 16, "(3 reading(s) per text, 16 injected tokens each)"),
        ({"name": "lt_prefix", "head": "label_aware", "shortlist": 2}, 3, 2 * 16, "16 injected tokens each, and one"),
        ({"name": "lt_prompt", "position": "after"}, 1, 3 * 15, "a text is read once, and 3 prompt(s) of 15 tokens"),
    ],
)
def test_a_steps_tokens_are_those_that_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str], method: dict[str, Any], whole: int, injected: int, words: str
) -> None:
    file = folder / "tokens.yaml"
    file.write_text(tiny_config(folder, method=method, train={"batch_size": 4}).to_yaml())
    assert main(["run", "--config", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    rows, tokens = (int(word.split(" ")[0]) for word in shown.split("train: ")[1].split("\n")[0].split(", "))
    assert f"tokens per step: {4 * (whole * tokens / rows + injected):,.0f} (" in shown and words in shown


@pytest.mark.parametrize(("name", "quantization"), [*((name, "none") for name in METHOD_NAMES), *QUANTIZED])
def test_methods_and_quantizations(
    folder: Path, name: str, quantization: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run.dir={folder / f'{name}-{quantization}'}", f"backbone.quantization={quantization}"]
    found = both(folder, *overrides, method={"name": name})
    said = capsys.readouterr()
    if (name, quantization) in IMPOSSIBLE:
        assert found == (2, 2)
        assert f"method {name} trains the backbone's own weights" in said.err
        assert "set backbone.quantization=none" in said.err and "trainable parameters" not in said.out
    else:
        assert found == (0, 0), said.err
        assert "trainable parameters: " in said.out


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "lora", "targets": ["no_such_layer"]}, "method.targets"),
        ({"name": "lora", "targets": []}, "method.targets"),
        ({"name": "lt_prefix", "shortlist": 2}, "method.shortlist=null or train.objective=candidates"),
        ({"name": "prefix", "tokens": 100}, "exceed the backbone's 128 positions"),
    ],
)
def test_what_training_refuses_the_dry_run_refuses(
    folder: Path, method: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train.objective=pairs"] if "shortlist" in method else []
    assert both(folder, f"run.dir={folder / 'refused'}", *train, method=method) == (2, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and all(words in line for line in errors)


def test_the_fault_is_named_with_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(tiny_config(tmp_path).to_yaml())
    overrides = ["backbone.quantization=int8", 'method={"name": "full"}']
    with pytest.raises(UserError, match=r"full\.yaml: method full trains .* or take method lora$"):
        load_config(file, overrides)


def test_labels_that_are_worded_do_not_count_the_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hypothesis for one of three labels: not K = 1."""
    texts = {"texts": {"sport": "Sport."}}
    file = folder / "worded.yaml"
    counts = []
    for labels in (texts, texts | {"names": sorted(TEXTS)}, {"texts": {name: f"{name}." for name in TEXTS}}):
        file.write_text(tiny_config(folder, method={"name": "prompt", "tokens": 4}, labels=labels).to_yaml())
        assert main(["estimate", "--config", str(file)]) == 0
        printed = capsys.readouterr().out
        counts.append(int(printed.split("prompt: ")[1].split(" ")[0].replace(",", "")))
        assumed = "labels.names is not set: " in printed
        assert assumed == ("names" not in labels)
    hidden = 16
    assert counts == [4 * hidden + labels * (hidden + 1) for labels in (2, 3, 3)]
