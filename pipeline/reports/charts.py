"""The report's pictures as Vega-Lite specifications. Colours are CSS variables, so that a theme is a matter of CSS."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from pipeline.reports.run_metrics import Rows

Spec = dict[str, Any]
WIDTH = 620
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
INK, FAINT, LINE, PAPER = "var(--ink)", "var(--faint)", "var(--line)", "var(--paper)"
FIRST, SECOND = "var(--first)", "var(--second)"
MANY_LABELS = 30
"""From here on a confusion matrix shows colours without counts."""
UNTEMPERED, TEMPERED = "without temperature", "with temperature"


def learning_curves(training: Rows, validation: Rows) -> Spec:
    """Training loss above, validation accuracy and log-loss below, over the same steps."""
    charts = [_curve(training, "loss", "training loss", FIRST)]
    if validation:
        charts += [
            _curve(validation, "accuracy", "accuracy", SECOND),
            _curve(validation, "log_loss", "log-loss", SECOND),
        ]
    stacked = alt.vconcat(*charts, spacing=18).resolve_scale(x="shared")
    return finished(stacked, "Training loss, and validation metrics, by step")


def _curve(rows: Rows, field: str, title: str, colour: str) -> alt.LayerChart | alt.FacetChart:
    axis = alt.Axis(tickCount=_whole(rows, "step"), format=",d", grid=False)
    x = alt.X("step:Q", title="step", scale=alt.Scale(nice=False, zero=True), axis=axis)
    y = _values_axis(field, [row[field] for row in rows])
    nearest = alt.selection_point(name=f"nearest_{field}", nearest=True, on="pointerover", fields=["step"], empty=False)
    base = alt.Chart(inline(rows)).encode(x=x, y=y)
    dots = base.mark_point(filled=True, size=45, color=colour, opacity=1 if len(rows) < 25 else 0.35)
    shown = dots.encode(
        size=alt.condition(nearest, alt.value(110), alt.value(30 if len(rows) < 25 else 8)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip(f"{field}:Q", format=".4f")],
    ).add_params(nearest)
    return alt.layer(base.mark_line(color=colour, strokeWidth=1.8), shown).properties(
        title=title, width=WIDTH, height=120
    )


def _whole(rows: Rows, field: str) -> int:
    """Most ticks on an axis from 0 that lie at whole numbers."""
    return max(1, min(8, max(int(row[field]) for row in rows)))


def _values_axis(field: str, values: Sequence[float]) -> alt.Y:
    low, high = min(values), max(values)
    if low < high:
        return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    # Where there is a single value, Vega would round it for the one tick that it draws.
    scale = alt.Scale(domain=[low - 0.1, low + 0.1], nice=False)
    return alt.Y(f"{field}:Q", title=None, scale=scale, axis=alt.Axis(values=[low], format=".4f"))


def confusion_matrix(cells: Rows, labels: Sequence[str]) -> Spec:
    """Rows are true labels, columns predictions; the shade is the share of the true label's texts."""
    side = max(14, min(88, WIDTH // len(labels))) * len(labels)
    axis = alt.Axis(labelLimit=150, labelAngle=-45, ticks=False, domain=False, grid=False)
    x = alt.X("predicted:N", sort=list(labels), title="predicted", axis=axis)
    y = alt.Y("true:N", sort=list(labels), title="true", axis=alt.Axis(labelLimit=150, ticks=False, domain=False))
    shown = [alt.Tooltip(f"{name}:N") for name in ("true", "predicted")]
    shown += [alt.Tooltip("count:Q"), alt.Tooltip("share:Q", format=".1%")]
    base = alt.Chart(inline(cells)).encode(x=x, y=y, tooltip=shown)
    # Opacity instead of a colour scale: it works on light and dark paper.
    shade = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None)
    layers = [base.mark_rect(color=FIRST, stroke=PAPER, strokeWidth=1).encode(opacity=shade)]
    if len(labels) <= MANY_LABELS:
        ink = alt.condition("datum.share > 0.5", alt.value(PAPER), alt.value(INK))
        counts = base.transform_filter("datum.count > 0").mark_text(fontSize=11)
        layers.append(counts.encode(text="count:Q", color=ink))
    return finished(alt.layer(*layers).properties(width=side, height=side), "Confusion matrix")


def class_scores(classes: Rows) -> Spec:
    """F1 of each label as a bar, precision and recall as marks on it."""
    labels = [row["label"] for row in sorted(classes, key=lambda row: -row["f1"])]
    shown = [
        alt.Tooltip("label:N"),
        *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("precision", "recall", "f1")),
    ]
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=170, ticks=False, domain=False))
    base = alt.Chart(inline(classes)).encode(y=y, tooltip=[*shown, alt.Tooltip("support:Q")])
    axis = alt.Axis(tickCount=5, grid=False)
    bars = base.mark_bar(color=FIRST, opacity=0.35, height={"band": 0.6})
    layers = [bars.encode(x=alt.X("f1:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=axis))]
    folded = base.transform_fold(["precision", "recall"], as_=["figure", "value"])
    marks = folded.mark_point(filled=True, size=55, opacity=1).encode(
        x="value:Q",
        color=_two_colours("figure", ["precision", "recall"]),
        shape=_two_shapes("figure", ["precision", "recall"]),
    )
    height = max(90, 24 * len(labels)) if len(labels) <= MANY_LABELS else 15 * len(labels)
    return finished(alt.layer(*layers, marks).properties(width=WIDTH - 150, height=height), "Scores of each label")


def reliability_diagram(before: Rows, after: Rows | None) -> Spec:
    """Accuracy against confidence; the diagonal is perfect calibration."""
    series = {UNTEMPERED: before} | ({TEMPERED: after} if after else {})
    rows = [row | {"probabilities": name} for name, part in series.items() for row in part]
    unit = alt.Scale(domain=[0, 1])
    diagonal = alt.Chart(inline([{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(color=FAINT, strokeDash=[4, 4])
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("confidence:Q", title="confidence", scale=unit, axis=alt.Axis(format="%", tickCount=5, grid=False)),
        y=alt.Y("accuracy:Q", title="accuracy", scale=unit, axis=alt.Axis(format="%", tickCount=5)),
        color=_two_colours("probabilities", list(series)),
        tooltip=[
            alt.Tooltip("probabilities:N"),
            alt.Tooltip("confidence:Q", format=".1%"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("texts:Q"),
        ],
    )
    size = alt.Size("texts:Q", scale=alt.Scale(range=[25, 260]), legend=None)
    layers = [diagonal.encode(x="x:Q", y="y:Q"), base.mark_line(strokeWidth=1.5)]
    layers.append(base.mark_point(filled=True, opacity=0.9).encode(size=size))
    return finished(alt.layer(*layers).properties(width=400, height=400), "Accuracy against confidence")


def score_histogram(bars: Rows) -> Spec:
    """The true label's scores over the best wrong label's: the less they overlap, the fewer mistakes."""
    chart = alt.Chart(inline(bars)).mark_bar(opacity=0.55, binSpacing=0)
    encoded = chart.encode(
        x=alt.X("low:Q", bin="binned", title="score", axis=alt.Axis(tickCount=8)),
        x2="high:Q",
        y=alt.Y("texts:Q", stack=None, title="texts", axis=alt.Axis(tickCount=_whole(bars, "texts"), format=",d")),
        color=_two_colours("label", ["true label", "best wrong label"]),
        tooltip=[
            alt.Tooltip("label:N", title="score of the"),
            alt.Tooltip("low:Q", title="from", format=".2f"),
            alt.Tooltip("high:Q", title="to", format=".2f"),
            alt.Tooltip("texts:Q"),
        ],
    )
    return finished(encoded.properties(width=WIDTH, height=220), "Scores of true and wrong labels")


def label_map(points: Rows) -> Spec:
    """Each label's place before tuning (ring) and after it (disc), joined by a line."""
    width, height = WIDTH, 430
    # One unit is as long in both directions, and names have room at the sides.
    reach = 1.2 * max(max(abs(point["y"]), abs(point["x"]) * height / width) for point in points)
    across = reach * width / height
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-across, across]))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-reach, reach]))
    base = alt.Chart(inline(points)).encode(x=x, y=y, tooltip=[alt.Tooltip("label:N"), alt.Tooltip("when:N")])
    lines = base.mark_line(color=FAINT, strokeWidth=1).encode(detail="label:N")
    dots = base.mark_point(size=70, opacity=1, strokeWidth=1.8, filled=True).encode(
        color=_two_colours("when", ["before", "after"]),
        shape=_two_shapes("when", ["before", "after"]),
    )
    after = base.transform_filter("datum.when == 'after'")
    small = len(points) > 2 * MANY_LABELS
    names = after.mark_text(dy=-12, fontSize=9 if small else 12, color=INK, limit=180).encode(text="label:N")
    return finished(alt.layer(lines, dots, names).properties(width=width, height=height), "Labels in two dimensions")


def _two_colours(field: str, names: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=[FIRST, SECOND][: len(names)])
    return alt.Color(f"{field}:N", scale=scale, legend=_legend())


def _two_shapes(field: str, names: Sequence[str]) -> alt.Shape:
    """Beside the colours, for those who do not tell them apart; the legends become one."""
    return alt.Shape(f"{field}:N", scale=alt.Scale(domain=list(names), range=["circle", "diamond"]), legend=_legend())


def _legend() -> alt.Legend:
    return alt.Legend(title=None, orient="top", symbolStrokeWidth=0, columnPadding=28)


def inline(rows: Rows) -> alt.InlineData:
    return alt.InlineData(values=rows)


def finished(chart: alt.TopLevelMixin, description: str) -> Spec:
    """The specification, with the page's typography. `description` is read to those who cannot see the picture."""
    text = {"labelColor": FAINT, "titleColor": FAINT, "labelFontSize": 11, "titleFontSize": 12}
    configured = chart.configure(
        background="transparent",
        font=FONT,
        axis={**text, "titleFontWeight": "normal", "gridColor": LINE, "domainColor": LINE, "tickColor": LINE},
        legend={**text, "labelColor": INK, "labelFontSize": 12},
        title={"anchor": "start", "frame": "group", "color": INK, "fontSize": 13, "fontWeight": "normal", "offset": 8},
        view={"stroke": None},
    )
    return configured.properties(description=description).to_dict()
