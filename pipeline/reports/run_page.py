"""What the template of a run's page shows."""

from typing import Any

from pipeline.core.run_dir import RunDir
from pipeline.reports import charts, run_metrics
from pipeline.reports.run import Run, cost, finding, label_points, mistakes

SECTIONS = [
    ("curves", "Learning curves"),
    ("matrix", "Confusions"),
    ("classes", "Labels"),
    ("reliability", "Reliability"),
    ("scores", "Scores"),
    ("mistakes", "Mistakes"),
    ("labels", "Label map"),
    ("cost", "Cost"),
    ("settings", "Settings"),
]
"""Their anchors in the page, and how the navigation calls them."""


def page_values(run: Run, run_dir: RunDir, *, texts: bool) -> dict[str, Any]:
    """Metrics, tables, and a specification for each picture."""
    config, split = run.config, run.split
    cells = run_metrics.confusion(split)
    wrong, no_texts = mistakes(run, texts=texts)
    points, tuned = label_points(run)
    classes = [{"label": name, **values} for name, values in run.metrics["per_class"].items()]
    before = run_metrics.reliability(split, 1.0)
    after = run_metrics.reliability(split, run.temperature) if run.temperature else None
    scores = run_metrics.score_distributions(split)
    pictures = {
        "reliability": charts.at_widths(charts.reliability_diagram, before, after),
        "scores": charts.at_widths(charts.score_histogram, scores),
        **_curves(run),
    }
    if len(split.labels) <= charts.MANY_LABELS:
        pictures["matrix"] = charts.at_widths(charts.confusion_matrix, cells, split.labels)
        pictures["classes"] = charts.at_widths(charts.class_scores, classes)
    if points and len(split.labels) <= charts.MOST_PLACES:
        pictures["labels"] = charts.at_widths(charts.label_map, points)
    sections = SECTIONS if run.training else SECTIONS[1:]
    confused = run_metrics.most_confused(cells)
    return {
        "sections": sections,
        "pictures": pictures,
        "split": split.name,
        "metrics": run.metrics,
        "calibrated": run.metrics.get("calibrated"),
        "config": config.model_dump(mode="json"),
        "yaml": config.to_yaml(),
        "counts": {name: part["rows"] for name, part in run.manifest["splits"].items()},
        "training": run.training,
        "validation": run.validation,
        "finding": finding(run, confused[:1]),
        "confused": confused,
        "scores": scores,
        "points": points,
        "classes": classes,
        "reliability": [(charts.UNTEMPERED, before), *([(charts.TEMPERED, after)] if after else [])],
        "takes_steps": config.method.takes_steps,
        "mistakes": wrong,
        "no_texts": no_texts,
        "hypotheses": {name: "; ".join(words) for name, words in run.adapter.labels.by_label.items()},
        "tuned": tuned,
        "cost": cost(run, run_dir),
    }


def _curves(run: Run) -> dict[str, charts.Pictures]:
    """Of what was measured often enough."""
    series = [
        ("loss", run.training, "training loss", charts.FIRST),
        ("accuracy", run.validation, "validation accuracy", charts.SECOND),
        ("log_loss", run.validation, "validation log-loss", charts.SECOND),
    ]
    return {
        field: charts.at_widths(charts.learning_curve, rows, field, title, colour)
        for field, rows, title, colour in series
        if len(rows) >= charts.FEWEST_POINTS
    }
