"""A comparison that looks for a template on validation, and judges what was chosen under others.

covers comparison/wording
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.comparison.wording import wording_means
from tests.support.tiny_comparison import write_comparison

TEMPLATES = ["This text is about {label}.", "{label}"]


def test_templates_are_chosen_on_validation_and_the_chosen_is_reworded(tmp_path: Path) -> None:
    methods = {"probe": {"method": {"prior": "always"}}, "plain": {"method": {"name": "probe", "prior": "never"}}}
    changes = {"grid": {"labels.template": TEMPLATES, "train.learning_rate": [0.1, 0.2]}, "seeds": [0]}
    base = {"evaluate": {"rewordings": ["It is {label}.", "On {label}!"]}}
    file = write_comparison(tmp_path, methods=methods | {"majority": {}}, base=base, **changes)
    assert main(["compare", "--config", str(file)]) == 0
    folder = tmp_path / "comparison"
    rows = {row["method"]: row for row in pq.read_table(folder / "results.parquet").to_pylist()}
    for row in rows.values():
        grid = json.loads(row["grid"])
        assert [point["setting"] for point in grid] == [{"labels.template": template} for template in TEMPLATES]
        assert row["validation"] == max(point["validation"] for point in grid)
        for metrics in (folder / row["run"]).parents[1].rglob("metrics.json"):
            splits = json.loads(metrics.read_text())
            assert ("test" in splits) == (metrics.parents[1] == folder / row["run"]), "test is for the chosen"
            assert all(("rewordings" in split) == ("test" in splits) for split in splits.values())
    lines = {line["method"]: line for line in pq.read_table(folder / "summary.parquet").to_pylist()}
    own = json.loads((folder / rows["probe"]["run"] / "evaluation/metrics.json").read_text())["test"]["rewordings"]
    found = {key: lines["probe"][f"reworded_{key}"] for key in ("mean", "worst", "spread")}
    assert found == pytest.approx(own["accuracy"]) and lines["probe"]["words_read"]
    assert [lines[name]["words_read"] for name in ("plain", "majority")] == [False, False]
    text = (folder / "tables.md").read_text()
    assert "| reworded | worst | spread |" in text and text.count("| reads no words |") == 2
    assert f"| {found['mean']:.4f} | {found['worst']:.4f} | {found['spread']:.4f} |" in text
    assert main(["report", "--compare", str(folder)]) == 0


def test_over_seeds_it_is_the_mean_and_a_seed_that_reads_none_has_its_own_value() -> None:
    read = {"read": True, "accuracy": {"mean": 0.6, "worst": 0.5, "spread": 0.2}}
    rows = [
        {"metric": "accuracy", "figures": {"accuracy": value, "rewordings": found}}
        for value, found in ((0.7, read), (0.8, {"read": False}))
    ]
    expected = {"reworded_mean": 0.7, "reworded_worst": 0.65, "reworded_spread": 0.1}
    found = wording_means(rows)
    assert found.pop("words_read") and found == pytest.approx(expected)
    unasked = wording_means([{"metric": "accuracy", "figures": {"accuracy": np.nan}}])
    assert set(unasked.values()) == {None}
