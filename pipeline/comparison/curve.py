"""The validation curve of a run, read from logs/metrics.jsonl: where it was after how many steps and seconds."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.files import read_json_lines

Curve = list[dict[str, float]]
"""One {step, seconds, value} per evaluation; seconds of training steps alone, without the evaluations."""


def read_curve(file: Path, metric: str) -> Curve:
    """The value of `metric` of every evaluation; empty where nothing was evaluated."""
    curve: Curve = []
    seconds = 0.0
    for line in read_json_lines(file):
        seconds += line.get("seconds", 0.0)
        if f"validation/{metric}" in line:
            curve.append({"step": line["step"], "seconds": seconds, "value": line[f"validation/{metric}"]})
    return curve


def steps_to_share(curve: Curve, share: float = 0.95) -> int | None:
    """The first evaluated step with at least this share of the last evaluation's metric (paper, Figure 2).

    None where nothing was reached: a Matthews correlation may end at 0 or below.
    """
    if not curve or curve[-1]["value"] <= 0:
        return None
    wanted = share * curve[-1]["value"]
    return int(next(point["step"] for point in curve if point["value"] >= wanted))


def seconds_to_step(curve: Curve, step: int) -> float | None:
    """Seconds of training until this step was evaluated; None where it was not."""
    return next((point["seconds"] for point in curve if point["step"] == step), None)


def value_within(curve: Curve, seconds: float) -> float | None:
    """The best value that was reached in this time."""
    reached: Sequence[float] = [point["value"] for point in curve if point["seconds"] <= seconds]
    return max(reached, default=None)
