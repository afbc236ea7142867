"""A whole comparison of tiny cells: shared data, tuning on validation, statistics on test, and an array job.

covers comparison/tables, stages/cell
"""

import csv
import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.backbone.frozen import FrozenBackbone
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.core.ownership import MARK
from tests.support.tiny_comparison import rows_of, write_comparison

PUBLISHED = {"tiny": {"news": {"lt_prompt": 0.925}}}


def weights_alive() -> int:
    """Elements of all backbones that this process still holds."""
    gc.collect()
    backbones = [module for module in gc.get_objects() if type(module) is FrozenBackbone]
    weights = [weight for backbone in backbones for weight in backbone.parameters()]
    return sum(weight.numel() + getattr(weight, "ds_tensor", weight).numel() for weight in weights)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    file = write_comparison(folder, published=PUBLISHED)
    before = weights_alive()
    # As an array job of two would, and then the rest.
    assert main(["compare", "--config", str(file), "--cells", "1/2"]) == 0
    assert not (folder / "comparison" / "results.csv").exists()
    assert main(["compare", "--config", str(file)]) == 0
    assert weights_alive() <= before, "no cell's backbone outlives it"
    return folder


def test_every_cell_has_a_row(finished: Path) -> None:
    rows = rows_of(finished)
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("lt_prompt", 0),
        ("lt_prompt", 1),
        ("prompt", 0),
        ("prompt", 1),
        ("majority", 0),
    ]
    with (finished / "comparison" / "results.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]
    for row in rows:
        metrics = json.loads((finished / "comparison" / row["run"] / "evaluation" / "metrics.json").read_text())
        assert row["test_accuracy"] == metrics["test"]["accuracy"] and row["test_n"] == 9
        assert (row["seconds"] > 0) == (row["steps"] == 4) == (row["method"] != "majority")


def test_cells_of_an_older_version_whose_config_means_the_same_are_not_run_again(finished: Path) -> None:
    """Its config.yaml had a key more, and its cell.json said nothing of convergence and readings."""
    folder = shutil.copytree(finished, finished.parent / f"{finished.name}-old", symlinks=True) / "comparison"
    times = {}
    for cell in folder.rglob("cell.json"):
        config = cell.with_name("config.yaml")
        config.write_text(config.read_text().replace("backbone:\n", "backbone:\n  trust_remote_code: false\n"))
        row = json.loads(cell.read_text()) | {"run": "../../x"}
        newer = ("patience", "converged", "readings")
        cell.write_text(json.dumps({key: value for key, value in row.items() if key not in newer}))
        times[cell] = cell.stat().st_mtime_ns
    assert main(["compare", "--config", str(finished / "compare.yaml"), f"dir={folder}"]) == 0
    for cell, before in times.items():
        assert cell.stat().st_mtime_ns == before, cell
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [row["run"] for row in rows] == [row["run"] for row in rows_of(finished)], "not taken from its cell.json"
    assert {(row["method"], row["converged"], row["readings"]) for row in rows} == {
        ("lt_prompt", False, None),
        ("prompt", False, None),
        ("majority", True, None),
    }


def test_settings_are_chosen_on_validation_with_the_first_seed(finished: Path) -> None:
    for row in rows_of(finished):
        grid = json.loads(row["grid"])
        if row["method"] == "majority":
            assert grid == []
            continue
        assert [point["setting"] for point in grid] == [{"train.learning_rate": rate} for rate in (0.003, 0.03)]
        best = max(grid, key=lambda point: point["validation"])
        assert json.loads(row["setting"]) == best["setting"]
        losers = [point for point in grid if point is not best]
        for point in losers:
            run = finished / "comparison" / Path(row["run"]).parents[1]
            folder = run / f"learning_rate={point['setting']['train.learning_rate']}" / "seed-0"
            assert (folder / "adapter").is_dir() and not (folder / "evaluation").exists(), "test is for the chosen"


def test_the_summary_compares_with_the_best_baseline(finished: Path) -> None:
    lines = {line["method"]: line for line in rows_of(finished, "summary")}
    rows = rows_of(finished)
    best = lines["lt_prompt"]["best_baseline"]
    assert best in ("prompt", "majority") and lines[best]["difference"] is None
    for name, line in lines.items():
        values = [row["test_accuracy"] for row in rows if row["method"] == name]
        assert line["mean"] == pytest.approx(sum(values) / len(values)) and line["seeds"] == len(values)
        if name != best:
            assert line["difference"] == pytest.approx(line["mean"] - lines[best]["mean"])
            assert line["low"] <= line["difference"] <= line["high"] and 0 < line["mcnemar_p"] <= 1
            assert (line["verdict"] == "better") == (line["low"] > 0)
    table = (finished / "comparison" / "tables.md").read_text()
    assert "| backbone | method | news (accuracy) |" in table and "| tiny | lt_prompt | 0." in table
    assert "(0.9250) |" in table and "In brackets: the published value." in table
    assert {name: line["published"] for name, line in lines.items() if line["published"]} == {"lt_prompt": 0.925}
    assert "### news, tiny, all training texts" in table and f"**{best}**" in table
    assert "Trained for equal steps, not to convergence." in table and "†" not in table
    # Four steps of four texts, each read with three labels by label tuning, and before that 13 texts alone.
    assert {name: line["readings"] for name, line in lines.items()} == {"lt_prompt": 61, "prompt": 16, "majority": 0}
    assert {line["converged"] for line in lines.values()} == {None}


def test_what_did_not_converge_is_marked(tmp_path: Path) -> None:
    """One method cannot get better, one reaches its last step, one takes none."""
    methods: dict[str, Any] = {name: {"method": {"name": "prompt", "tokens": 4}} for name in ("still", "capped")}
    methods["still"]["method"]["head"] = "label_aware"  # a linear head starts at zero, and rounding would decide
    methods["still"]["train"] = {"learning_rate": 1e-9, "max_steps": 9}
    train = {"max_steps": 2, "batch_size": 4, "eval_every": 1, "log_every": 1, "early_stopping_patience": 3}
    changes = {"grid": {}, "methods": methods | {"probe": {}}, "base": {"train": train}}
    assert main(["compare", "--config", str(write_comparison(tmp_path, **changes))]) == 0
    rows, lines = rows_of(tmp_path), {line["method"]: line for line in rows_of(tmp_path, "summary")}
    assert {name: line["converged"] for name, line in lines.items()} == {"still": True, "capped": False, "probe": True}
    for name, line in lines.items():
        own = [row for row in rows if row["method"] == name]
        assert line["steps_to_best"] == round(sum(row["best_step"] for row in own) / 2)
        assert 0 < line["seconds_to_best"] <= line["seconds"]
    assert (lines["still"]["steps"], lines["still"]["steps_to_best"], lines["still"]["readings"]) == (4, 1, 16)
    assert (lines["probe"]["steps"], lines["probe"]["readings"]) == (0, 13), "every training text was read once"
    table = (tmp_path / "comparison" / "tables.md").read_text()
    overview = table.split("###")[0].splitlines()
    assert [line.split(" | ")[1] for line in overview if "†" in line and "|" in line] == ["capped"]
    assert "† training of a seed or more" in overview[-2] and "equal steps" not in table


def test_data_are_shared_and_a_second_run_trains_nothing(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = sorted((finished / "comparison" / "runs").rglob("seed-*"))
    assert len(runs) == 7 and len({(run / "data").resolve() for run in runs}) == 1
    times = {path: path.stat().st_mtime_ns for path in (finished / "comparison" / "runs").rglob("cell.json")}
    with caplog.at_level("INFO", "pipeline"):
        assert main(["compare", "--config", str(finished / "compare.yaml")]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times and len(times) == 7
    assert "trainable parameters" not in caplog.text


def test_sizes_are_texts_per_label_drawn_by_the_seed(tmp_path: Path) -> None:
    changes = {"sizes": [2], "grid": {}, "methods": {"prompt": {"method": {"tokens": 4}}}}
    assert main(["compare", "--config", str(write_comparison(tmp_path, **changes))]) == 0
    for seed in (0, 1):
        run = tmp_path / "comparison" / "runs" / "news" / "tiny" / "prompt" / "2" / "only" / f"seed-{seed}"
        manifest = json.loads((run / "data" / "manifest.json").read_text())
        assert set(manifest["splits"]["train"]["per_label"].values()) == {2} and manifest["splits"]["test"]["rows"] == 9
    assert {row["size"] for row in rows_of(tmp_path)} == {"2"}


def test_adapters_that_are_chosen_by_log_loss_are_compared_by_accuracy(tmp_path: Path) -> None:
    by_log_loss = {"method": {"tokens": 4}, "train": {"best_metric": "log_loss"}}
    changes = {"grid": {}, "seeds": [0], "methods": {"prompt": by_log_loss, "majority": {}}}
    assert main(["compare", "--config", str(write_comparison(tmp_path, **changes))]) == 0
    prompt = next(row for row in rows_of(tmp_path) if row["method"] == "prompt")
    lines = (tmp_path / "comparison" / prompt["run"] / "logs" / "metrics.jsonl").read_text().splitlines()
    evaluated = [line for line in map(json.loads, lines) if "validation/log_loss" in line]
    best = min(evaluated, key=lambda line: line["validation/log_loss"])
    assert prompt["metric"] == "accuracy" and prompt["best_step"] == best["step"]
    assert prompt["validation"] == best["validation/accuracy"]


def test_a_copied_or_moved_comparison_goes_on_where_it_is(finished: Path, tmp_path: Path) -> None:
    command = ["compare", "--config", str(finished / "compare.yaml")]
    original = finished / "comparison"
    for symlinks in (True, False):
        copy = tmp_path / f"links-{symlinks}"
        shutil.copytree(original, copy, symlinks=symlinks)
        before = {path: path.stat().st_mtime_ns for path in original.rglob("*")}
        trained = {path: path.stat().st_mtime_ns for path in copy.rglob("adapter-final/summary.json")}
        assert main([*command, f"dir={copy}"]) == 0
        assert {path: path.stat().st_mtime_ns for path in original.rglob("*")} == before
        assert {path: path.stat().st_mtime_ns for path in trained} == trained and len(trained) == 7
        for run in (copy / "runs").rglob("seed-*"):
            assert (run / "data").is_symlink() and (run / "data").resolve().is_relative_to(copy)


def test_a_comparison_of_an_older_version_is_taken_over(finished: Path, tmp_path: Path) -> None:
    """Without marks, with run.dir in the cells' configs and with absolute links."""
    copy = tmp_path / "old"
    shutil.copytree(finished / "comparison", copy, symlinks=True)
    for mark in [*copy.rglob(MARK)]:
        mark.unlink()
    for file in copy.rglob("config.yaml"):
        file.write_text(load_config(file, [f"run.dir={file.parent}"]).to_yaml())
        for link in (file.parent / "data", file.parent / "labels"):
            target = link.resolve()
            link.unlink()
            link.symlink_to(target)
    trained = {path: path.stat().st_mtime_ns for path in copy.rglob("adapter-final/summary.json")}
    assert main(["compare", "--config", str(finished / "compare.yaml"), f"dir={copy}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained and len(trained) == 7
    assert (copy / MARK).is_file() and not os.path.isabs(os.readlink(next(copy.rglob("seed-0")) / "data"))


def test_every_evaluation_has_its_place_in_time(tmp_path: Path) -> None:
    methods = {"prompt": {"method": {"tokens": 4}}}
    file = write_comparison(tmp_path, grid={}, methods=methods, seeds=[0])
    assert main(["compare", "--config", str(file), "base.train.log_every=10"]) == 0
    first, last = json.loads(rows_of(tmp_path)[0]["curve"])
    assert 0 < first["seconds"] < last["seconds"]


def test_a_setting_that_diverges_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"methods": {"prompt": {"method": {"tokens": 4}}}, "seeds": [0]}
    file = write_comparison(tmp_path, grid={"train.learning_rate": [0.003, 3e37]}, **changes)
    before = weights_alive()
    with caplog.at_level("WARNING", "pipeline"):
        assert main(["compare", "--config", str(file)]) == 0
    assert '{"train.learning_rate": 3e+37} is left out: runs/news/tiny/prompt' in caplog.text
    assert weights_alive() <= before
    assert json.loads(rows_of(tmp_path)[0]["setting"]) == {"train.learning_rate": 0.003}
    assert main(["compare", "--config", str(file), "grid={}", "base.train.learning_rate=3e37"]) == 2
    assert "runs/news/tiny/prompt/all/only/seed-0: the loss is" in capsys.readouterr().err.splitlines()[-1]


def test_an_ablation_compares_with_a_reference_on_validation(tmp_path: Path) -> None:
    methods = {name: {"method": {"name": "lt_prompt", "head": name}} for name in ("label_aware", "linear")}
    methods["linear"]["labels"] = {"template": "{label}"}
    changes = {"grid": {}, "methods": methods, "split": "validation", "reference": "label_aware"}
    assert main(["compare", "--config", str(write_comparison(tmp_path, **changes))]) == 0
    for row in rows_of(tmp_path):
        metrics = json.loads((tmp_path / "comparison" / row["run"] / "evaluation" / "metrics.json").read_text())
        assert list(metrics) == ["validation"], "test is not looked at"
        assert row["validation_accuracy"] == metrics["validation"]["accuracy"] == row["validation"]
        labels = json.loads((tmp_path / "comparison" / row["run"] / "labels" / "labels.json").read_text())
        assert (labels["hypotheses"] == labels["names"]) == (row["method"] == "linear"), "words of its own"
    lines = {line["method"]: line for line in rows_of(tmp_path, "summary")}
    assert lines["label_aware"]["difference"] is None and lines["linear"]["difference"] is not None
    assert "difference to label_aware" in (tmp_path / "comparison" / "tables.md").read_text()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_test_texts_are_read_where_test_is_compared_on(tmp_path: Path, split: str) -> None:
    changes = {"grid": {}, "methods": {"probe": {}}, "seeds": [0], "split": split}
    assert main(["compare", "--config", str(write_comparison(tmp_path, **changes))]) == 0
    [row] = rows_of(tmp_path)
    states = json.loads((tmp_path / "comparison" / row["run"] / "texts" / "states.json").read_text())
    assert states["splits"].keys() == {"train", "validation", split}
