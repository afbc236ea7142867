"""What a comparison that is run again keeps, and what it makes anew.

covers stages/cell
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.comparison.config import groups, load_comparison
from pipeline.engine.startup import start
from pipeline.stages.cell import Cell, cell_of
from tests.support.tiny_comparison import rows_of, write_comparison


def test_a_comparison_follows_its_config(tmp_path: Path) -> None:
    methods = {"prompt": {"method": {"tokens": 4}}}
    file = write_comparison(tmp_path, grid={}, methods=methods, seeds=[0])
    trained = set()
    for limit in (9, 6):
        assert main(["compare", "--config", str(file), f"base.data.test_limit={limit}"]) == 0
        [row] = rows_of(tmp_path)
        assert row["test_n"] == limit
        trained.add((tmp_path / "comparison" / row["run"] / "adapter-final").stat().st_mtime_ns)
    assert len(trained) == 1, "other test texts are no reason to train again"


TABLES = {"results.parquet", "results.csv", "summary.parquet", "summary.csv", "tables.md"}


def interrupted(cell: Cell, judge: bool) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_a_finished_cell_is_kept_until_it_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"prompt": {"method": {"tokens": 4}}}
    command = ["compare", "--config", str(write_comparison(tmp_path, grid={}, methods=methods, seeds=[0, 1]))]
    assert main(command) == 0
    folder = tmp_path / "comparison"

    def files() -> dict[Path, int]:
        found = [path for path in (folder / "runs").rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in found}

    before = files()
    changes = ["base.train.max_steps=6", "datasets.news.data.max_length=32"]
    assert main([*command, *changes]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "seed-0' holds a finished run, and data: data.max_length was '64', now '32'" in said
    assert "train.max_steps was '4', now '6'" in said and files() == before
    assert all((run / "data").resolve().is_dir() for run in (folder / "runs").rglob("seed-*"))
    assert main(command) == 0 and files() == before
    tables = {file for file in folder.iterdir() if file.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(Cell, "results", interrupted)
        assert main([*command, *changes, "--overwrite"]) == 130
    assert {file.name for file in tables if not file.exists()} == TABLES, "they are of what is there no more"
    assert main([*command, *changes, "--overwrite"]) == 0
    assert all(file.exists() for file in tables)
    assert [row["steps"] for row in rows_of(tmp_path)] == [6, 6]
    after = files()
    assert main([*command, *changes, "--overwrite"]) == 0 and files() == after, "what is current is not trained again"


def test_what_was_trained_on_other_weights_is_not_shown_for_an_overwritten_cell(tmp_path: Path) -> None:
    methods = {"prompt": {"method": {"tokens": 4}}}
    command = ["compare", "--config", str(write_comparison(tmp_path, grid={}, methods=methods, seeds=[0]))]
    assert main(command) == 0
    [before] = rows_of(tmp_path)
    file = tmp_path / "backbone" / "model.safetensors"
    weights = {name: weight.flip(0) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert main(command) == 2 and rows_of(tmp_path) == [before]
    assert main([*command, "--overwrite"]) == 0
    [row] = rows_of(tmp_path)
    evaluation = tmp_path / "comparison" / row["run"] / "evaluation"
    assert row["test_log_loss"] != before["test_log_loss"]
    assert row["test_log_loss"] == json.loads((evaluation / "metrics.json").read_text())["test"]["log_loss"]
    shutil.rmtree(evaluation)
    assert main(command) == 0 and evaluation.is_dir() and rows_of(tmp_path) == [row], "what is gone is made again"


def test_an_interrupted_cell_starts_afresh_with_another_config(tmp_path: Path) -> None:
    changes = {"grid": {}, "methods": {"prompt": {"method": {"tokens": 4}}}, "seeds": [0]}
    file = write_comparison(tmp_path, **changes)
    assert main(["compare", "--config", str(file), "base.train.save_every=2"]) == 0
    [row] = rows_of(tmp_path)
    run = tmp_path / "comparison" / row["run"]
    shutil.rmtree(run / "adapter-final")
    assert list((run / "checkpoints").iterdir()), "it looks interrupted"
    assert main(["compare", "--config", str(file), "base.train.max_steps=6"]) == 0
    assert [row["steps"] for row in rows_of(tmp_path)] == [6]


def test_cells_that_start_from_other_readings_of_the_labels_leave_each_other_theirs(tmp_path: Path) -> None:
    """As in an array job: a share makes its label states while another, on the same data, is about to train."""
    file = write_comparison(tmp_path, grid={}, methods={"lt_prompt": {}, "lt_prefix": {}}, seeds=[0])
    comparison = load_comparison(file)
    cells = [cell_of(comparison, group, {}, 0, {}) for group in groups(comparison)]
    ranks = start(cells[0].config)[1]
    for cell in cells:
        cell.prepare(ranks, overwrite=False)
    for cell in cells:
        assert cell.results(judge=True)["figures"]["n"] == 9
    runs = [cell.config.run_dir for cell in cells]
    assert len({run.labels.resolve() for run in runs}) == 2 and len({run.data.resolve() for run in runs}) == 1
