"""Robustness to wording: the metrics of one classifier over several rewordings of its labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

JUDGED = ("accuracy", "macro_f1", "mcc")


def over_rewordings(rewordings: Sequence[Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, worst and spread (best less worst) of each metric, and the metrics under each rewording, ready for JSON.

    `found`: `split_metrics` under each; none where the classifier does not read the labels' words, which is then said.
    """
    if not found:
        return {"read": False}
    each = [
        {"rewording": rewording, **{key: metrics[key] for key in JUDGED}}
        for rewording, metrics in zip(rewordings, found, strict=True)
    ]
    return {"read": True, **{key: _summary([one[key] for one in each]) for key in JUDGED}, "each": each}


def _summary(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "worst": min(values), "spread": max(values) - min(values)}


def wording_line(found: Mapping[str, Any]) -> str:
    """In one line, for people."""
    if not found["read"]:
        return "its labels' words are not read: no rewording changes a score"
    shown = (f"{key} {found[key]['mean']:.4f} (worst {found[key]['worst']:.4f})" for key in JUDGED)
    return f"over {len(found['each'])} rewordings of the labels: {', '.join(shown)}"
