"""What the tables compare with what; their numbers are tested in stages/test_compare."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.comparison.tables import Row, write_tables
from pipeline.core.errors import UserError
from pipeline.core.run_dir import RunDir
from pipeline.methods import BASELINES
from tests.support import compared
from tests.support.compared import invent


def lines_of(folder: Path) -> dict[str, Row]:
    return {line["method"]: line for line in pq.read_table(folder / "summary.parquet").to_pylist()}


def test_only_baselines_are_chosen_for_reference(tmp_path: Path) -> None:
    """The best on validation would be lt_prefix."""
    lines = lines_of(invent(tmp_path, ["sst2"], methods=("lt_prefix", "prompt", "majority"), texts=200))
    assert max(lines.values(), key=lambda line: line["validation"])["method"] == "lt_prefix"
    baselines = {name: line for name, line in lines.items() if name in BASELINES}
    best = max(baselines, key=lambda name: baselines[name]["validation"])
    assert {line["best_baseline"] for line in lines.values()} == {best}
    assert [name for name, line in lines.items() if line["verdict"] is None] == [best]


@pytest.mark.parametrize("reference", [None, "lt_prompt"])
def test_without_baselines_only_a_named_reference_is_compared_with(tmp_path: Path, reference: str | None) -> None:
    folder = invent(tmp_path, ["sst2"], methods=("lt_prefix", "lt_prompt"), reference=reference)
    text, lines = (folder / "tables.md").read_text(), lines_of(folder)
    assert {line["best_baseline"] for line in lines.values()} == {reference}
    assert (lines["lt_prefix"]["verdict"] is None) == (reference is None)
    assert ("difference to lt_prompt" in text) == ("McNemar" in text) == (reference is not None)
    assert ("there is no baseline" in text) == (reference is None) and "None" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = [row.count("|") for row in rows]
    assert len(set(widths[:4])) == len(set(widths[4:])) == 1


@pytest.mark.parametrize("change", ["row", "label", "fewer"])
@pytest.mark.parametrize("run", ["runs/1", "runs/2"], ids=["another seed", "another method"])
def test_other_texts_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, change: str) -> None:
    """Also where their labels are the same."""
    kept: list[Row] = []
    monkeypatch.setattr(compared, "write_tables", lambda folder, rows, *given: kept.extend(rows))
    folder = invent(tmp_path, ["sst2"], methods=("lt_prefix", "prompt"))
    file = RunDir(folder / run).predictions_file
    table = pq.read_table(file)
    if change == "row":
        table = table.set_column(1, "row", pc.add(table["row"], 1))
    elif change == "label":
        table = table.set_column(2, "label", pa.array(table["label"].to_pylist()[::-1]))
    else:
        table = table.slice(0, 8)
    pq.write_table(table, file)
    with pytest.raises(UserError) as raised:
        write_tables(folder, kept)
    assert f"'runs/0' and '{run}' in '{folder}' were not judged on the same test texts and labels" in str(raised.value)
