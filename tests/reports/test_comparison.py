"""The numbers behind a comparison's pictures, and which runs they come from.

covers reports/comparison_metrics, reports/comparison_page, reports/palette
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.reports import comparison_metrics as metrics
from pipeline.reports.comparison import NEWER, Method, Place, read_comparison
from pipeline.reports.comparison_charts import cost_plane
from pipeline.reports.comparison_page import page_values
from pipeline.reports.page import as_file, render
from pipeline.reports.palette import COLOURS, style_of
from tests.support.compared import invent


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.comparison.statistics.RESAMPLES", 20)


def line(method: str, **values: Any) -> dict[str, Any]:
    own = {"dataset": "d", "backbone": "b", "size": "all", "method": method, "best_baseline": "prompt"}
    return own | {"mcnemar_p": 0.5, "verdict": "better"} | values


def test_methods_come_in_the_order_of_the_page(tmp_path: Path) -> None:
    methods = ("majority", "prompt", "zero_shot", "lt_prompt", "probe")
    comparison = read_comparison([invent(tmp_path, ["sst2"], methods=methods)])
    expected = ["lt_prompt", "prompt", "probe", "zero_shot", "majority"]
    assert [method.name for method in comparison.methods] == expected
    assert [line["method"] for line in comparison.places[0].lines] == expected
    assert [method.is_trained for method in comparison.methods] == [True, True, True, False, False]


def test_what_two_directories_hold_counts_once(tmp_path: Path) -> None:
    first = invent(tmp_path / "sst2", ["sst2"], methods=("lt_prefix", "prompt"))
    second = invent(tmp_path / "sizes", ["sst2"], methods=("lt_prefix", "majority"), sizes=("16", "64", "all"))
    comparison = read_comparison([first, second])
    assert [(place.size, len(place.lines)) for place in comparison.places] == [("all", 2), ("16", 2), ("64", 2)]
    assert comparison.notes == ["sst2, minilm: shown from sst2, left out from sizes"]
    assert comparison.sizes == ["all", "64", "16"] and comparison.largest() == [comparison.places[0]]
    series = metrics.by_size(comparison)
    assert [row["size"] for row in series["sst2", "minilm"] if row["method"] == "lt_prefix"] == ["16", "64", "all"]


def test_an_ablation_on_validation_and_one_without_baselines_can_be_shown(tmp_path: Path) -> None:
    invented = invent(tmp_path, ["sst2"], methods=("lt_prefix", "lt_prompt"), split="validation", seeds=1)
    values = page_values(read_comparison([invented]))
    assert ("judged on", "60 validation texts") in values["facts"]
    assert "differences" not in [anchor for anchor, _ in values["sections"]] and values["verdicts"] == []
    assert "sst2" in render("comparison.html.j2", **values)


def test_the_page_says_whether_methods_were_trained_to_convergence(tmp_path: Path) -> None:
    methods = ("lt_prefix", "prefix", "probe", "majority")
    plain = invent(tmp_path / "plain", ["sst2"], methods=methods)
    patient = invent(tmp_path / "patient", ["rte"], methods=methods, patience=3, missed=["prefix"])
    pages = {name: page_of(folders) for name, folders in {"e": [plain], "c": [patient], "b": [plain, patient]}.items()}
    assert "not to convergence" in pages["e"] and "†" not in pages["e"]
    for page in (pages["c"], pages["b"]):
        rows = [row for row in page.split("<tr")[1:] if "†" in row.split("</tr>")[0]]
        assert len(rows) == 2 and all(">prefix<" in row for row in rows), "in the overview, and in the details"
        assert "training of a seed or more reached its last step before it had converged" in page
    assert "validation got no better." in pages["c"] and "no better, or for equal steps." in pages["b"]


def test_the_page_of_an_older_comparison(tmp_path: Path) -> None:
    file = invent(tmp_path, ["sst2"], methods=("lt_prefix", "prefix")) / "summary.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(NEWER)), file)
    assert "not to convergence" in page_of([tmp_path])


def page_of(folders: list[Path]) -> str:
    return render("comparison.html.j2", **page_values(read_comparison(folders)))


def test_a_mean_curve_holds_the_steps_of_all_seeds() -> None:
    curves = [[(10, 1.0, 0.5), (20, 2.0, 0.6)], [(10, 3.0, 0.7)], [(10, 2.0, 0.6), (20, 9.0, 0.1)]]
    runs = [
        {
            "method": "m",
            "curve": json.dumps([dict(zip(("step", "seconds", "value"), point, strict=True)) for point in one]),
        }
        for one in curves
    ]
    assert metrics.mean_curves(Place([], [*runs, {"method": "majority", "curve": "[]"}])) == [
        {"method": "m", "step": 10, "seconds": 2.0, "value": pytest.approx(0.6), "sd": pytest.approx(0.1), "seeds": 3}
    ]


def test_differences_are_cut_where_l_tuning_would_not_be_seen_any_more() -> None:
    lines = [
        line("lt_prefix", difference=0.02, low=-0.01, high=0.05),
        line("p_tuning", difference=-0.2, low=-0.3, high=-0.1),
        line("prompt", difference=None, low=None, high=None),
        line("majority", difference=-0.5, low=-0.6, high=-0.4),
    ]
    methods = [Method(one["method"], one["method"] == "lt_prefix", one["method"] != "majority", False) for one in lines]
    mine, cut = metrics.differences(Place(lines, []), methods)
    assert (mine["from"], mine["to"], mine["inside"]) == (-0.01, 0.05, True) and not mine["cut_low"]
    assert (cut["from"], cut["to"]) == (pytest.approx(-0.15), -0.1)
    assert cut["cut_low"] and not cut["cut_high"] and not cut["inside"]


@pytest.mark.parametrize(("cost", "ticks"), [((0.2, 2.5), ["0.3", "1"]), ((2000, 20000), ["3k", "10k"])])
def test_costs_are_written_as_they_are_said(cost: tuple[float, float], ticks: list[str]) -> None:
    """300m would be read as minutes, or millions."""
    names = ["lt_prefix", "probe"]
    rows = [
        {"method": name, "seconds": value, "mean": 0.5, "low": 0.4, "high": 0.6}
        for name, value in zip(names, cost, strict=True)
    ]
    picture = as_file(cost_plane(rows, style_of([Method(name, True, True, False) for name in names]), "seconds", "d"))
    assert [tick for tick in ticks if f">{tick}</text>" in picture] == ticks


def test_the_grid_keeps_its_columns_where_a_setting_failed(tmp_path: Path) -> None:
    place = read_comparison([invent(tmp_path, ["sst2"], methods=("lt_prefix", "prompt"))]).places[0]
    for run in place.runs:
        if run["method"] == "lt_prefix":
            run["grid"] = json.dumps(json.loads(run["grid"])[1:])
    table = metrics.tried(place)
    assert table["points"] == ["learning_rate 0.03", "learning_rate 0.003"]
    assert [row["validation"].count(None) for row in table["rows"]] == [1, 0]
    assert table["rows"][0]["chosen"] == "learning_rate 0.003"


def test_no_two_methods_look_alike_and_l_tunings_colours_are_its_own() -> None:
    methods = [Method(f"m{number}", number < 2, True, False) for number in range(3 * COLOURS)]
    styles = list(style_of(methods).values())
    assert len({(style.colour, style.shape) for style in styles}) == len(styles)
    assert not {style.colour for style in styles[:2]} & {style.colour for style in styles[2:]}
