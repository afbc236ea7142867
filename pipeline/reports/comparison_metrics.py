"""The numbers behind a comparison's pictures and tables."""

import json
from typing import Any

import numpy as np

from pipeline.reports.charts import FEWEST_POINTS
from pipeline.reports.comparison import Comparison, Method, Place, size_order
from pipeline.reports.run_metrics import Rows

REACH = 3.0
"""Differences are drawn up to this many times the furthest end of an interval of L-Tuning's."""


def mean_curves(place: Place) -> Rows:
    """The validation metric at each step that all seeds of a method have evaluated: mean, spread and mean seconds."""
    rows = []
    for method in dict.fromkeys(run["method"] for run in place.runs):
        runs = [run for run in place.runs if run["method"] == method]
        curves = [{point["step"]: point for point in json.loads(run["curve"])} for run in runs]
        for step in sorted(set.intersection(*map(set, curves))):
            values = np.array([curve[step]["value"] for curve in curves])
            seconds = float(np.mean([curve[step]["seconds"] for curve in curves]))
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            metrics = {"value": float(values.mean()), "sd": spread, "seeds": len(values)}
            rows.append({"method": method, "step": step, "seconds": seconds, **metrics})
    return rows


def curve_table(place: Place) -> tuple[list[str], list[list[Any]]]:
    """The mean curves as a table: the methods, and a row per step with their values, None where one has none."""
    rows = mean_curves(place)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    values = {(row["step"], row["method"]): row["value"] for row in rows}
    steps = sorted({row["step"] for row in rows})
    return methods, [[step, *(values.get((step, method)) for method in methods)] for step in steps]


def differences(place: Place, methods: list[Method]) -> Rows:
    """Trained methods beside what they are compared with. What lies beyond the picture's reach is cut off there."""
    trained = {method.name: method.is_ours for method in methods if method.is_trained}
    lines = [line for line in place.lines if line["method"] in trained and line["difference"] is not None]
    ours = [line for line in lines if trained[line["method"]]]
    reach = REACH * max((_furthest(line) for line in ours), default=float("inf"))
    return [
        {key: line[key] for key in ("method", "difference", "low", "high", "mcnemar_p", "verdict")}
        | {"from": float(np.clip(line["low"], -reach, reach)), "to": float(np.clip(line["high"], -reach, reach))}
        | {
            "inside": abs(line["difference"]) <= reach,
            "cut_low": line["low"] < -reach,
            "cut_high": line["high"] > reach,
        }
        for line in lines
    ]


def _furthest(line: dict[str, Any]) -> float:
    return max(abs(line["low"]), abs(line["high"]))


def costs(place: Place) -> Rows:
    """Mean metric of each trained method, with its spread as an interval, beside seconds and parameters."""
    return [
        _with_spread(line) | {"seconds": line["seconds"], "parameters": line["parameters"]}
        for line in place.lines
        if line["seconds"] > 0 and line["parameters"] > 0
    ]


def by_size(comparison: Comparison) -> dict[tuple[str, str], Rows]:
    """(data set, backbone) -> metrics of the trained methods at each size, for those with enough sizes to draw."""
    trained = {method.name for method in comparison.methods if method.is_trained}
    found: dict[tuple[str, str], Rows] = {}
    for place in sorted(comparison.places, key=lambda place: size_order(place.size)):
        rows = [_with_spread(line) | {"size": place.size} for line in place.lines if line["method"] in trained]
        found.setdefault((place.dataset, place.backbone), []).extend(rows)
    return {key: rows for key, rows in found.items() if len({row["size"] for row in rows}) >= FEWEST_POINTS}


def _with_spread(line: dict[str, Any]) -> dict[str, Any]:
    spread = line["sd"] or 0.0
    return {"method": line["method"], "mean": line["mean"], "low": line["mean"] - spread, "high": line["mean"] + spread}


def overview(comparison: Comparison, size: str) -> dict[str, Any]:
    """The table of one size: a block of rows per backbone, a row per method, a cell per data set."""
    places = {(place.backbone, place.dataset): place for place in comparison.places if place.size == size}
    datasets = {dataset: place.metric for (_, dataset), place in places.items()}
    blocks = {}
    for backbone in dict.fromkeys(backbone for backbone, _ in places):
        chosen = [places.get((backbone, dataset)) for dataset in datasets]
        rows = [(method, [_cell(place, method) for place in chosen]) for method in comparison.methods]
        blocks[backbone] = [(method, cells) for method, cells in rows if any(cells)]
    return {"size": size, "datasets": datasets, "blocks": blocks}


def _cell(place: Place | None, method: Method) -> dict[str, Any] | None:
    lines = [] if place is None else place.lines
    highest = max((line["mean"] for line in lines), default=0.0)
    return next((line | {"highest": line["mean"] == highest} for line in lines if line["method"] == method.name), None)


def verdicts(comparison: Comparison) -> list[tuple[str, dict[str, int]]]:
    """How often each L-Tuning method is better, worse and not told apart."""
    counts = []
    for method in comparison.methods:
        found = [
            line["verdict"] for place in comparison.places for line in place.lines if line["method"] == method.name
        ]
        words = ("better", "worse", "not told apart")
        count = {word.replace(" ", "_"): found.count(word) for word in words}
        if method.is_ours and any(count.values()):
            counts.append((method.name, count | {"all": sum(count.values())}))
    return counts


def tried(place: Place) -> dict[str, Any]:
    """The grid: all points, and a row per method with its validation metric at each, and the one that was chosen."""
    grids = {run["method"]: json.loads(run["grid"]) for run in place.runs}
    found = {name: {words(point["setting"]): point["validation"] for point in grid} for name, grid in grids.items()}
    points = list(dict.fromkeys(point for values in found.values() for point in values))
    rows = [
        {"method": line["method"], "validation": [values.get(point) for point in points], "chosen": chosen(line)}
        for line in place.lines
        if (values := found[line["method"]])
    ]
    return {"points": points, "rows": rows}


def chosen(line: dict[str, Any]) -> str:
    """The setting that the method was judged with."""
    return words(json.loads(line["setting"]))


def words(setting: dict[str, Any]) -> str:
    """A point of the grid for people: learning_rate 0.003."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in setting.items())
