"""What choose-reading reports: a table, lines to paste into a config, a picture."""

from dataclasses import asdict
from shlex import quote
from typing import Any

import altair as alt

from pipeline.backbone.every_layer import PARTS
from pipeline.methods.reading_choice import Probed, ReadingChoice
from pipeline.reports.charts import FAINT, FIRST, INK, SECOND, WIDTH, Spec, finished, inline

BEST, CHEAPEST = "*", "+"
COLOURS = dict(zip(PARTS, (FIRST, SECOND, FAINT, INK), strict=True))


def table(choice: ReadingChoice) -> str:
    """Accuracies, a row per layer, or layers joined, and a column per pooling, and what to make of them."""
    rows: dict[str, dict[str, str]] = {}
    for one in choice.probed:
        mark = BEST if one == choice.best else CHEAPEST if one == choice.cheapest else " "
        rows.setdefault(str(one.layers), {})[one.pooling] = f"{one.accuracy:10.4f}{mark}"
    width = max(map(len, ("layers", *rows)))
    lines = [
        f"accuracy on {choice.validation_texts:,} validation texts of a probe fitted to {choice.train_texts:,} "
        f"(standard error {choice.standard_error:.3f})",
        f"{'layers':>{width}}{''.join(f'{how:>10} ' for how in PARTS)}".rstrip(),
    ]
    for layers, cells in rows.items():
        lines.append(f"{layers:>{width}}{''.join(cells.get(how, ' ' * 11) for how in PARTS)}".rstrip())
    lines += ["", f"as configured: {_described(choice.now)}"]
    lines += _advice("best", BEST, choice, choice.best)
    if choice.cheapest != choice.best:
        lines += _advice("fewest layers within one standard error", CHEAPEST, choice, choice.cheapest)
    return "\n".join(lines)


def _advice(title: str, mark: str, choice: ReadingChoice, one: Probed) -> list[str]:
    layers = "null" if one.layers == choice.layers else str(one.layers)
    unread = f"; {choice.unread(one):.0%} of the layers need not be loaded" if choice.unread(one) else ""
    return [
        f"{title} ({mark}): {_described(one)}{unread}",
        f"  backbone: {{layers: {layers}, pooling: {one.pooling}}}",
        f"  {quote(f'backbone.layers={layers}')} backbone.pooling={one.pooling}",
    ]


def _described(one: Probed) -> str:
    layers = "1 layer" if one.layers == 1 else f"{one.layers} layers"
    if isinstance(one.layers, list):
        layers = f"layers {', '.join(map(str, one.layers))} joined"
    return f"{layers}, {one.pooling}: accuracy {one.accuracy:.4f}, log-loss {one.log_loss:.4f}"


def values(choice: ReadingChoice) -> dict[str, Any]:
    """The same for a program."""
    found = {name: asdict(getattr(choice, name)) for name in ("best", "cheapest", "now")}
    return {**found, "standard_error": choice.standard_error, **asdict(choice)}


def picture(choice: ReadingChoice) -> Spec:
    """Accuracy by layer, a line per pooling, and diamonds where layers are joined; best and cheapest are ringed.

    A dashed line is a standard error below the best.
    """
    rows = [asdict(one) | {"layers": one.depth, "joined": isinstance(one.layers, list)} for one in choice.probed]
    ticks = list(range(1, choice.layers + 1, -(-choice.layers // 16)))
    colour = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    each = alt.Chart(inline(rows)).encode(
        x=alt.X("layers:Q", title="layers that are read", axis=alt.Axis(values=ticks, format="d", grid=False)),
        y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
        color=alt.Color("pooling:N", scale=colour, legend=alt.Legend(title=None, orient="top", columnPadding=28)),
    )
    near = alt.Chart(inline([{"accuracy": choice.best.accuracy - choice.standard_error}]))
    base, joined = (each.transform_filter(test) for test in ("!datum.joined", "datum.joined"))
    chosen = [{"layers": one.depth, "accuracy": one.accuracy} for one in (choice.best, choice.cheapest)]
    layers = [
        near.mark_rule(color=FAINT, strokeDash=[4, 4]).encode(y="accuracy:Q"),
        base.mark_line(strokeWidth=1.8),
        base.mark_point(filled=True, size=30, opacity=1),
        joined.mark_point(filled=True, size=60, opacity=1, shape="diamond"),
        alt.Chart(inline(chosen)).mark_point(color=INK, size=150).encode(x="layers:Q", y="accuracy:Q"),
    ]
    title = "Validation accuracy of a probe, by layers and pooling (diamonds: several layers joined)"
    return finished(alt.layer(*layers).properties(width=WIDTH, height=280, title=title), title)
