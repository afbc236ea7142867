"""compare.yaml: the cells and shares it stands for, and what is refused before anything runs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.comparison.config import describe, groups, load_comparison, share_of
from pipeline.core import run_lock
from pipeline.core.ownership import claim
from tests.support.tiny_comparison import write_comparison

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
COMPARISONS = sorted([*RECIPES.glob("compare/*.yaml"), *RECIPES.glob("table1/*.yaml")])


def test_a_folder_that_is_somebodys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    (tmp_path / "mine" / "runs" / "notes.txt").write_text("mine")
    assert main(["compare", "--config", str(write_comparison(tmp_path)), f"dir={tmp_path / 'mine'}"]) == 2
    assert "mine' holds 'runs' and is not a comparison directory" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["runs", "notes.txt"]


@pytest.mark.parametrize("shares", [1, 2, 3, 4])
@pytest.mark.parametrize("recipe", ["minilm", "few_shot", "smollm2"])
def test_shares_hold_every_group_once_and_methods_and_data_sets_alike(recipe: str, shares: int) -> None:
    everything = groups(load_comparison(RECIPES / "compare" / f"{recipe}.yaml"))
    parts = [share_of(everything, (number, shares)) for number in range(shares)]
    assert sorted(map(str, everything)) == sorted(str(group) for part in parts for group in part)
    for name in {name for group in everything for name in (group.method, group.dataset)}:
        counts = [sum(name in (group.method, group.dataset) for group in part) for part in parts]
        assert max(counts) - min(counts) <= 2, name


def test_a_group_that_another_process_is_at_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    owner_of: Callable[..., int],
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.5)
    claim(tmp_path / "comparison", "comparison")
    owner = owner_of(tmp_path / "comparison" / "runs" / "news" / "tiny" / "lt_prompt" / "all")
    try:
        assert main(["compare", "--config", str(write_comparison(tmp_path))]) == 2
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert f"lt_prompt/all' is in use by process {owner} on " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"methods": {"lt_prefx": {}}}, [], "cell news/tiny/lt_prefx: 'method.name' must be one of"),
        ({"grid": {"train.learning_rat": [1]}}, [], "did you mean 'train.learning_rate'?"),
        ({"base": {"data": {"validation": None}}, "datasets": {"x": {"data": {"train": "t"}}}}, [], "data.validation"),
        ({}, ["--cells", "2/2"], "write I/N"),
        ({}, ["--cells", f"0/{10**18}"], "N up to 10000"),
        ({}, ["seeds=[0, 1, 0]"], "'seeds': 0 is given twice"),
        ({}, ["seeds=[0, -1]"], "'seeds.1': Input should be greater than or equal to 0"),
        ({}, ["sizes=[8, all, 8]"], "8 is given twice"),
        ({}, ["sizes=[8, most]"], "'sizes.1': must be all, or a number of texts from 1 on"),
        ({"grid": {"train.learning_rate": [1e-3, 0.001]}}, [], "0.001 is given twice"),
        ({"grid": {"train.learning_rate": []}}, [], "grid.train.learning_rate"),
        ({}, ["grid.train.learning_rat=[1]"], "did you mean 'train.learning_rate'?"),
        ({"grid": {"train.learning_rate": [0.1, float("nan")]}}, [], "'train.learning_rate': "),
        ({"published": {"tiny": {"news": {"prompt": float("inf")}}}}, [], "finite number"),
        ({"reference": "lt_prefix"}, [], "not one of methods: lt_prompt, prompt, majority"),
        ({"published": {"tiny": {"news": {"bert": 0.9}}}}, [], "published.tiny.news.bert is not a cell"),
        ({"methds": {}}, [], "'methds'"),
        ({"grid": {"run.seed": [1, 2]}}, [], "section run follows from the comparison's dir and seeds"),
        ({"methods": {"lt_prompt": {"run": {"seed": 7}}}}, [], "cell news/tiny/lt_prompt: section run follows"),
        ({"methods": {"lt_prompt": {"evaluate": {"splits": ["test"]}}}}, [], "evaluate.splits follows from"),
        ({"sizes": [2], "grid": {"data.train_per_label": [1, 3]}}, [], "data.train_per_label and sizes both say"),
    ],
)
def test_faults_are_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], options: list[str], words: str
) -> None:
    file = write_comparison(tmp_path, **changes)
    assert main(["compare", "--config", str(file), *options]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "comparison").exists()


def test_a_key_of_the_grid_can_be_overridden_alone(tmp_path: Path) -> None:
    file = write_comparison(tmp_path)
    grid = load_comparison(file, ["grid.train.learning_rate=[0.5]", "grid.train.batch_size=[2, 4]"]).grid
    assert grid == {"train.learning_rate": [0.5], "train.batch_size": [2, 4]}


@pytest.mark.parametrize("recipe", COMPARISONS, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    comparison = load_comparison(recipe)
    assert describe(comparison).count("runs/") == len(groups(comparison))


def test_dry_run_lists_the_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--config", str(write_comparison(tmp_path)), "--dry-run", "seeds=[0,1,2]"]) == 0
    printed = capsys.readouterr().out
    assert "runs/news/tiny/lt_prompt/all: 4 runs, lt_prompt" in printed and "3 groups, 9 runs" in printed
