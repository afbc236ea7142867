"""The report's pictures as Vega-Lite specifications. Colours are CSS variables, so that a theme is a matter of CSS."""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from pipeline.reports.run_metrics import Rows

Spec = dict[str, Any]
Pictures = dict[str, Spec]
"""One picture at the widths of `at_widths`."""
WIDTH, PHONE = 660, 330
"""Pixels of a whole picture, names on its axes included. What is drawn at its own size keeps its letters' size."""
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")
PADDING = {"left": 26, "right": 14, "top": 5, "bottom": 5}
"""Room for names in a font that is wider than the one by which the picture is laid out."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
INK, FAINT, LINE, PAPER = "var(--ink)", "var(--faint)", "var(--line)", "var(--paper)"
FIRST, SECOND = "var(--first)", "var(--second)"
MANY_LABELS = 12
"""More have no confusion matrix and no bars, but tables that can be sorted."""
MOST_PLACES = 30
"""More labels have no map: their names would lie on one another."""
FEWEST_POINTS = 3
"""Fewer are not joined by a line: a table says it better."""
UNTEMPERED, TEMPERED = "without temperature", "with temperature"


def at_widths(draw: Callable[..., Spec], *given: Any) -> Pictures:
    """The same picture for wide pages and for phones."""
    return {"on-wide": draw(*given, width=WIDTH), "on-phone": draw(*given, width=PHONE)}


def learning_curve(rows: Rows, field: str, title: str, colour: str, width: int) -> Spec:
    """A metric by step."""
    axis = alt.Axis(tickCount=min(_whole(rows, "step"), width // 60), format=",d", grid=False)
    x = alt.X("step:Q", title="step", scale=alt.Scale(nice=False, zero=True), axis=axis)
    base = alt.Chart(inline(rows)).encode(x=x, y=_values_axis(field, [row[field] for row in rows]))
    size, opacity = (30, 1) if len(rows) < 25 else (8, 0.35)
    dots = base.mark_point(filled=True, color=colour, size=size, opacity=opacity)
    layers = alt.layer(base.mark_line(color=colour, strokeWidth=1.8), dots)
    return _fitted(layers.properties(title=title), width, _height(width, 120, 95), f"{title.capitalize()} by step")


def _height(width: int, wide: int, phone: int) -> int:
    return wide if width == WIDTH else phone


def _fitted(chart: Any, width: int, height: int, description: str) -> Spec:
    return finished(fitted(chart, width, height), f"{description}; a table follows")


def fitted(chart: Any, width: int, height: int) -> alt.TopLevelMixin:
    """A chart of this size, names on its axes included."""
    sized: alt.TopLevelMixin = chart.properties(width=width, height=height, autosize=FIT, padding=PADDING)
    return sized


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


def confusion_matrix(cells: Rows, labels: Sequence[str], width: int) -> Spec:
    """Rows are true labels, columns predictions; the shade is the share of the true label's texts."""
    limit = width // 4
    height = max(100, min(44 * len(labels), (width - limit)))
    axis = alt.Axis(labelLimit=limit, labelAngle=-45, domain=False, grid=False)
    x = alt.X("predicted:N", sort=list(labels), title="predicted", axis=axis)
    y = alt.Y("true:N", sort=list(labels), title="true", axis=alt.Axis(labelLimit=limit, domain=False, titlePadding=22))
    base = alt.Chart(inline(cells)).encode(x=x, y=y)
    # Opacity instead of a colour scale: it works on light and dark paper.
    shade = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None)
    ink = alt.condition("datum.share > 0.5", alt.value(PAPER), alt.value(INK))
    counts = base.transform_filter("datum.count > 0").mark_text(fontSize=11).encode(text="count:Q", color=ink)
    squares = base.mark_rect(color=FIRST, stroke=PAPER, strokeWidth=1).encode(opacity=shade)
    return _fitted(alt.layer(squares, counts), width, height, "Confusion matrix")


def class_scores(classes: Rows, width: int) -> Spec:
    """F1 of each label as a bar, precision and recall as marks on it."""
    labels = [row["label"] for row in sorted(classes, key=lambda row: -row["f1"])]
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=width // 3, domain=False))
    base = alt.Chart(inline(classes)).encode(y=y)
    axis = alt.Axis(tickCount=5, grid=False)
    bars = base.mark_bar(color=FIRST, opacity=0.35, height={"band": 0.6})
    layers = [bars.encode(x=alt.X("f1:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=axis))]
    folded = base.transform_fold(["precision", "recall"], as_=["figure", "value"])
    marks = folded.mark_point(filled=True, size=55, opacity=1).encode(
        x="value:Q",
        color=_two_colours("figure", ["precision", "recall"]),
        shape=_two_shapes("figure", ["precision", "recall"]),
    )
    height = max(90, 24 * len(labels))
    return _fitted(alt.layer(*layers, marks), width, height, "Scores of each label")


def reliability_diagram(before: Rows, after: Rows | None, width: int) -> Spec:
    """Accuracy against confidence; the diagonal is perfect calibration."""
    series = {UNTEMPERED: before} | ({TEMPERED: after} if after else {})
    rows = [row | {"probabilities": name} for name, part in series.items() for row in part]
    unit = alt.Scale(domain=[0, 1])
    diagonal = alt.Chart(inline([{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(color=FAINT, strokeDash=[4, 4])
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("confidence:Q", title="confidence", scale=unit, axis=alt.Axis(format="%", tickCount=5, grid=False)),
        y=alt.Y("accuracy:Q", title="accuracy", scale=unit, axis=alt.Axis(format="%", tickCount=5)),
        color=_two_colours("probabilities", list(series)),
    )
    size = alt.Size("texts:Q", scale=alt.Scale(range=[25, 260]), legend=None)
    layers = [diagonal.encode(x="x:Q", y="y:Q")]
    if min(map(len, series.values())) >= FEWEST_POINTS:
        layers.append(base.mark_line(strokeWidth=1.5))
    layers.append(base.mark_point(filled=True, opacity=0.9).encode(size=size))
    side = min(width, 420)
    return _fitted(alt.layer(*layers), side, _height(width, 340, 220), "Accuracy against confidence")


def score_histogram(bars: Rows, width: int) -> Spec:
    """The true label's scores over the best wrong label's: the less they overlap, the fewer mistakes."""
    chart = alt.Chart(inline(bars)).mark_bar(opacity=0.55, binSpacing=0)
    encoded = chart.encode(
        x=alt.X("low:Q", bin="binned", title="score", axis=alt.Axis(tickCount=8)),
        x2="high:Q",
        y=alt.Y("texts:Q", stack=None, title="texts", axis=alt.Axis(tickCount=_whole(bars, "texts"), format=",d")),
        color=_two_colours("label", ["true label", "best wrong label"]),
    )
    return _fitted(encoded, width, _height(width, 200, 150), "Scores of true and of wrong labels")


def label_map(points: Rows, width: int) -> Spec:
    """Each label's place before tuning (ring) and after it (disc), joined by a line."""
    height = round(width * 0.65)
    # One unit is as long in both directions, and names have room at the sides.
    reach = 1.2 * max(max(abs(point["y"]), abs(point["x"]) * height / width) for point in points)
    across = reach * width / height
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-across, across]))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-reach, reach]))
    base = alt.Chart(inline(points)).encode(x=x, y=y)
    lines = base.mark_line(color=FAINT, strokeWidth=1).encode(detail="label:N")
    dots = base.mark_point(size=70, opacity=1, strokeWidth=1.8, filled=True).encode(
        color=_two_colours("when", ["before", "after"]),
        shape=_two_shapes("when", ["before", "after"]),
    )
    after = base.transform_filter("datum.when == 'after'")
    names = after.mark_text(dy=-12, fontSize=11, color=INK, limit=width // 4).encode(text="label:N")
    return _fitted(alt.layer(lines, dots, names), width, height, "Labels in two dimensions")


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
    """The specification, with the page's typography. `description` is read to those who cannot see it."""
    text = {"labelColor": FAINT, "titleColor": FAINT, "labelFontSize": 11, "titleFontSize": 12}
    configured = chart.configure(
        background="transparent",
        font=FONT,
        # No tick marks: where labels would overlap one is left out, and a mark without a label says nothing.
        axis={
            **text,
            "titleFontWeight": "normal",
            "gridColor": LINE,
            "domainColor": LINE,
            "ticks": False,
            "labelPadding": 5,
        },
        legend={**text, "labelColor": INK, "labelFontSize": 12},
        title={"anchor": "start", "frame": "group", "color": INK, "fontSize": 13, "fontWeight": "normal", "offset": 8},
        view={"stroke": None},
    )
    return configured.properties(description=description).to_dict()
