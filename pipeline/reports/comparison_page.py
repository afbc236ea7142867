"""What the template of a comparison's page shows."""

from typing import Any

from pipeline.comparison.tables import EQUAL_STEPS, NOT_CONVERGED, rows_by
from pipeline.reports import comparison_charts as charts
from pipeline.reports import comparison_metrics as metrics
from pipeline.reports.charts import FEWEST_POINTS, Spec
from pipeline.reports.comparison import Comparison, Place
from pipeline.reports.palette import style_of

SECTIONS = [
    ("overview", "Overview"),
    ("differences", "Differences"),
    ("curves", "Convergence"),
    ("cost", "Cost"),
    ("sizes", "Training-set size"),
    ("details", "Details"),
    ("settings", "Settings"),
]
"""Their anchors in the page, and how the navigation calls them."""
Panel = dict[str, Any]
"""One small picture: name, note and Vega-Lite specification."""


def page_values(comparison: Comparison) -> dict[str, Any]:
    """Tables, and the pictures of every section that has any."""
    styles = style_of([method for method in comparison.methods if method.is_trained])
    panels = _panels(comparison, styles)
    places = [
        (
            _name(comparison, place),
            place,
            {line["method"]: metrics.chosen(line) for line in place.lines},
            metrics.tried(place),
        )
        for place in comparison.places
    ]
    references = {place.reference for place in comparison.places}
    reference = references.pop() if len(references) == 1 else "the best baseline"
    verdicts = metrics.verdicts(comparison)
    lines = [line for place in comparison.places for line in place.lines]
    return {
        "sections": [(anchor, name) for anchor, name in SECTIONS if panels.get(anchor, True)],
        "title": _title(comparison),
        "panels": panels,
        "styles": styles,
        "comparison": comparison,
        "reference": reference,
        "verdicts": verdicts,
        "finding": finding(verdicts, reference, comparison),
        "about": {line["dataset"]: line["about"] for line in lines if line["about"]},
        "curves": [(_name(comparison, place), *metrics.curve_table(place)) for place in comparison.largest()],
        "tables": [metrics.overview(comparison, size) for size in comparison.sizes],
        "places": places,
        "trained": _trained(comparison),
        "not_converged": NOT_CONVERGED if any(line["converged"] is False for line in lines) else None,
        "facts": _facts(comparison),
    }


def finding(verdicts: list[tuple[str, dict[str, int]]], reference: str | None, comparison: Comparison) -> str:
    """What came of the comparison, in one sentence."""
    if not verdicts:
        return "Nothing was compared with another method: the tables have what each reached."
    parts = [
        f"{name} is better in {count['better']} of {count['all']}, worse in {count['worse']}, not told apart in "
        f"{count['not_told_apart']}"
        for name, count in verdicts
    ]
    sets = len({place.dataset for place in comparison.places})
    return f"Against {reference}, on {sets} data set{'s' * (sets > 1)}: {'; '.join(parts)}."


def _panels(comparison: Comparison, styles: charts.Styles) -> dict[str, list[Panel]]:
    """Of each data set the size with the most training texts; the smaller ones are in a section of their own."""
    places = comparison.largest()
    found: dict[str, list[Panel]] = {"differences": [], "curves": [], "curves_2": [], "cost": [], "cost_2": []}
    for place in places:
        name = _name(comparison, place)
        if place.reference and (rows := metrics.differences(place, comparison.methods)):
            spec = charts.differences(rows, place.reference, styles, name)
            found["differences"].append({"name": name, "note": f"to {place.reference}", "spec": spec})
        rows = metrics.mean_curves(place)
        if len({row["step"] for row in rows}) >= FEWEST_POINTS:
            for key, by in (("curves", "step"), ("curves_2", "seconds")):
                found[key].append(_panel(name, place, charts.convergence(rows, styles, by, name)))
        if len(rows := metrics.costs(place)) > 1:
            for key, by in (("cost", "seconds"), ("cost_2", "parameters")):
                found[key].append(_panel(name, place, charts.cost_plane(rows, styles, by, name)))
    return found | {"sizes": _size_panels(comparison, styles)}


def _size_panels(comparison: Comparison, styles: charts.Styles) -> list[Panel]:
    series = metrics.by_size(comparison)
    places = {(place.dataset, place.backbone): place for place in comparison.largest()}
    names = {key: _name(comparison, places[key], size=False) for key in series}
    return [_panel(names[key], places[key], charts.sizes(rows, styles, names[key])) for key, rows in series.items()]


def _panel(name: str, place: Place, spec: Spec) -> Panel:
    return {"name": name, "note": place.metric, "spec": spec}


def _name(comparison: Comparison, place: Place, size: bool = True) -> str:
    """As short as the page allows: the backbone is named where there are several, the size where it is not all."""
    several = len({other.backbone for other in comparison.places}) > 1
    parts = [place.dataset, place.backbone if several else "", f"{place.size} per label" if size else ""]
    return ", ".join(part for part in parts if part and part != "all per label")


def _title(comparison: Comparison) -> str:
    datasets = list(dict.fromkeys(place.dataset for place in comparison.places))
    where = datasets[0] if len(datasets) == 1 else f"{len(datasets)} data sets"
    return f"{len(comparison.methods)} methods on {where}"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What all the numbers rest on."""
    runs = [run for place in comparison.places for run in place.runs]
    kinds = {run["method"]: run["method_name"] for run in runs}
    methods = [name if name == kind else f"{name} ({kind})" for name, kind in kinds.items()]
    texts = {run["dataset"]: f"{run[run['split'] + '_n']:,} {run['split']} texts" for run in runs}
    trained = rows_by([run for run in runs if run["steps"]], ["dataset"])
    steps = {part[0]["dataset"]: _span([run["steps"] for run in part]) for part in trained}
    return [
        ("backbones", ", ".join(dict.fromkeys(run["backbone"] for run in runs))),
        ("methods", ", ".join(methods)),
        ("judged on", _by_dataset(texts)),
        ("steps", _by_dataset(steps)),
        ("training texts per label", ", ".join(reversed(comparison.sizes))),
        ("seeds", ", ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))),
    ]


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"


def _trained(comparison: Comparison) -> str:
    """How long, in words."""
    found = {line["converged"] is None for place in comparison.places for line in place.lines if line["steps"]}
    if found == {True, False}:
        how = "Trained until validation got no better, or for equal steps."
    elif found == {False}:
        how = "Trained until validation got no better."
    else:
        how = EQUAL_STEPS if found else ""
    return f"Same data and loop for every method. {how}"


def _by_dataset(values: dict[str, str]) -> str:
    """Said once where it is the same for all."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{dataset} {value}" for dataset, value in values.items())
