"""A comparison's pictures as Vega-Lite specifications: one small picture per data set, so that the page can flow."""

import math
from typing import Any

import altair as alt

from pipeline.reports.charts import FAINT, Spec, finished, fitted, inline
from pipeline.reports.palette import Style
from pipeline.reports.run_metrics import Rows

Styles = dict[str, Style]
HEIGHT = 170
ROW_HEIGHT = 19
WIDTH = 288
"""Of the whole picture, names on the axis included: three stand side by side, and one fits a phone."""


def convergence(rows: Rows, styles: Styles, by: str, name: str) -> Spec:
    """Mean validation metric of every method by `step` or by `seconds` (paper, Figure 2)."""
    title = {"step": "step", "seconds": "seconds of training"}[by]
    base = alt.Chart(inline(_ours_on_top(rows, styles))).encode(
        x=alt.X(f"{by}:Q", title=title, scale=alt.Scale(nice=False, zero=False), axis=_axis()),
        y=_height("value"),
        color=_colour(styles),
    )
    dots = _marks(base, styles, size=26)
    return _panel(alt.layer(_lines(base, styles), dots), HEIGHT, f"Validation metric by {title}: {name}")


def differences(rows: Rows, reference: str, styles: Styles, name: str) -> Spec:
    """A forest plot: differences to the reference method, with intervals; arrows where they leave the picture."""
    present = {row["method"] for row in rows}
    names = [method for method in styles if method in present or method == reference]
    names += [reference] if reference not in styles else []
    y = alt.Y("method:N", sort=names, title=None, scale=alt.Scale(domain=names), axis=_names())
    ends = [0.0, *(row[end] for row in rows for end in ("from", "to"))]
    scale = alt.Scale(domain=[min(ends), max(ends)], nice=False, padding=8)
    signed = "datum.value == 0 ? '0' : format(datum.value, '+.2~f')"
    axis = alt.Axis(
        tickCount=3, labelExpr=signed, labelOverlap="greedy", labelSeparation=8, labelBound=True, grid=False
    )
    base = alt.Chart(inline(rows)).encode(y=y, color=_colour(styles))
    zero = alt.Chart(inline([{"x": 0}])).mark_rule(color=FAINT, strokeDash=[3, 3]).encode(x="x:Q")
    rules = base.mark_rule().encode(
        x=alt.X("from:Q", title=None, scale=scale, axis=axis), x2="to:Q", strokeWidth=_width(styles)
    )
    points = _marks(base.transform_filter("datum.inside"), styles, size=55).encode(x="difference:Q")
    arrows = [
        base.transform_filter(f"datum.{cut}")
        .mark_point(shape=f"triangle-{to}", filled=True, size=45)
        .encode(x=f"{end}:Q")
        for cut, to, end in (("cut_low", "left", "from"), ("cut_high", "right", "to"))
    ]
    beside = alt.Chart(inline([{"method": reference, "x": 0}])).mark_point(shape="diamond", filled=True, size=70)
    own = beside.encode(x="x:Q", y=y, color=alt.value(FAINT))
    height = ROW_HEIGHT * len(names)
    return _panel(alt.layer(rules, zero, points, *arrows, own), height, f"Differences to {reference}: {name}")


def cost_plane(rows: Rows, styles: Styles, by: str, name: str) -> Spec:
    """Mean metric against `seconds` of training or trained or fitted `parameters`, on a logarithmic axis."""
    title = {"seconds": "seconds of training", "parameters": "trained or fitted parameters"}[by]
    low, high = min(row[by] for row in rows) / 1.2, max(row[by] for row in rows) * 1.2
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    # Not 300m for 0.3 seconds, which reads as minutes or millions.
    plain = "format(datum.value, datum.value < 1 ? '~g' : '~s')"
    axis = alt.Axis(values=_log_ticks(low, high), labelExpr=plain, labelOverlap="greedy", grid=False)
    base = alt.Chart(inline(_ours_on_top(rows, styles))).encode(
        x=alt.X(f"{by}:Q", title=title, scale=scale, axis=axis), color=_colour(styles)
    )
    spread = base.mark_rule(opacity=0.6).encode(y=_height("low"), y2="high:Q")
    points = _marks(base, styles, size=75).encode(y="mean:Q")
    return _panel(alt.layer(spread, points), HEIGHT, f"Metric against {title}: {name}")


def sizes(rows: Rows, styles: Styles, name: str) -> Spec:
    """Mean metric of every method against the number of training texts per label."""
    order = list(dict.fromkeys(row["size"] for row in rows))
    axis = alt.Axis(labelAngle=0, grid=False)
    base = alt.Chart(inline(_ours_on_top(rows, styles))).encode(
        x=alt.X("size:O", sort=order, title="training texts per label", axis=axis, scale=alt.Scale(padding=0.3)),
        color=_colour(styles),
    )
    spread = base.mark_rule(opacity=0.45).encode(y=_height("low"), y2="high:Q")
    means = base.encode(y="mean:Q")
    layers = [spread, _lines(means, styles), _marks(means, styles, size=45)]
    return _panel(alt.layer(*layers), HEIGHT + 40, f"Metric by number of training texts: {name}")


def _lines(base: alt.Chart, styles: Styles) -> alt.Chart:
    return base.mark_line().encode(strokeWidth=_width(styles))


def _marks(base: alt.Chart, styles: Styles, size: int = 30) -> alt.Chart:
    """Points with each method's own colour, shape and filling."""
    shape = alt.Shape("method:N", scale=_scale(styles, "shape"), legend=None)
    fill = alt.Fill("method:N", scale=_scale(styles, "fill"), legend=None)
    return base.mark_point(opacity=1, size=size, strokeWidth=1.5).encode(shape=shape, fill=fill)


def _colour(styles: Styles) -> alt.Color:
    return alt.Color("method:N", scale=_scale(styles, "colour"), legend=None)


def _width(styles: Styles) -> alt.StrokeWidth:
    return alt.StrokeWidth("method:O", scale=_scale(styles, "width"), legend=None)


def _scale(styles: Styles, part: str) -> alt.Scale:
    return alt.Scale(type="ordinal", domain=list(styles), range=[getattr(style, part) for style in styles.values()])


def _ours_on_top(rows: Rows, styles: Styles) -> Rows:
    """What comes last is drawn over the rest."""
    order = list(styles)
    return sorted(rows, key=lambda row: -order.index(row["method"]))


def _height(field: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two; the fewer decades, the more in each."""
    decades = math.log10(high / low)
    leading = (1, 2, 3, 5, 7) if decades < 1 else (1, 3) if decades < 3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [tick for power in powers for digit in leading if low <= (tick := digit * 10.0**power) <= high]


def _axis() -> alt.Axis:
    return alt.Axis(tickCount=4, labelOverlap="greedy", grid=False)


def _names() -> alt.Axis:
    return alt.Axis(labelLimit=140, domain=False, labelPadding=6)


def _panel(chart: Any, height: int, description: str) -> Spec:
    return finished(fitted(chart, WIDTH, height), f"{description}; tables follow")
