"""A comparison on two ranks: they agree on what is left out.

covers stages/compare
"""

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.processes import launch, run_script
from tests.support.tiny_comparison import write_comparison


def two_ranks(folder: Path) -> list[int]:
    file = write_comparison(
        folder,
        methods={"prompt": {"method": {"tokens": 4}}},
        seeds=[0],
        grid={"train.learning_rate": [3e37, 0.003]},
    )
    return launch(["compare", "--config", str(file), "base.engine.threads=1"], folder / "two.log", world=2)


def test_on_two_ranks_a_setting_that_diverges_is_left_out_by_both(tmp_path: Path) -> None:
    statuses = run_script("tests.stages.test_compare_ranks:two_ranks", tmp_path, 300)
    said = (tmp_path / "two.log").read_text()
    assert statuses == [0, 0], said
    left_out = [line for line in said.splitlines() if '{"train.learning_rate": 3e+37} is left out: runs/news' in line]
    assert len(left_out) == 2, "both ranks went on"
    [row] = pq.read_table(tmp_path / "comparison" / "results.parquet").to_pylist()
    assert json.loads(row["setting"]) == {"train.learning_rate": 0.003} and row["steps"] == 4
