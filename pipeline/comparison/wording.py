"""What a comparison says of rewordings of the labels: how far a method's metric depends on how they are worded."""

from typing import Any

import numpy as np

Row = dict[str, Any]
MEASURES = ("mean", "worst", "spread")
WORDING_COLUMNS = ["reworded", "worst", "spread"]


def wording_means(rows: list[Row]) -> Row:
    """Of the metric, means over seeds: over rewordings of the labels, under the worst, and the best less the worst.

    None where nobody asked for them, and for methods that do not read the labels' words (`words_read` False).
    """
    found = [row["figures"].get("rewordings") for row in rows]
    read = None if None in found else any(one["read"] for one in found)
    # A seed whose probe does without the prior is moved by no word.
    metric = rows[0]["metric"]
    alone = [{"mean": value, "worst": value, "spread": 0.0} for value in (row["figures"][metric] for row in rows)]
    each = [one[metric] if one["read"] else own for one, own in zip(found, alone, strict=True)] if read else []
    means = {f"reworded_{key}": float(np.mean([one[key] for one in each])) if each else None for key in MEASURES}
    return {"words_read": read, **means}


def wording_cells(line: Row) -> list[str]:
    """Under the columns of `WORDING_COLUMNS`."""
    if not line["words_read"]:
        return ["reads no words", "", ""]
    return [f"{line[f'reworded_{key}']:.4f}" for key in MEASURES]
