"""Reads what `compare` wrote, in one directory or several, into what the report's template shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.comparison.tables import PLACE, key_of, rows_by
from pipeline.core.errors import UserError
from pipeline.methods import BASELINES
from pipeline.reports.run_metrics import Rows

COLUMNS = {
    "summary": {*PLACE, "method", "metric", "mean", "sd", "seeds", "verdict", "best_baseline", "published"},
    "results": {*PLACE, "method", "method_name", "seed", "curve", "grid", "steps", "parameters", "split"},
}
"""What a file must hold at least, to be a comparison's."""
NEWER = dict.fromkeys(("about", "converged", "steps_to_best", "seconds_to_best", "readings"))
"""What older ones do not say."""


@dataclass(frozen=True)
class Method:
    """A compared method, under the name that the comparison gives it."""

    name: str
    is_ours: bool
    """It is none of the program's baselines."""
    is_trained: bool
    is_majority: bool


@dataclass(frozen=True)
class Place:
    """What is compared with each other: all methods of one data set, backbone and training-set size."""

    lines: Rows
    """One per method, from summary.parquet, in the order of the methods."""
    runs: Rows
    """One per method and seed, from results.parquet."""

    @property
    def dataset(self) -> str:
        return str(self.lines[0]["dataset"])

    @property
    def backbone(self) -> str:
        return str(self.lines[0]["backbone"])

    @property
    def size(self) -> str:
        """Training texts per label, or all."""
        return str(self.lines[0]["size"])

    @property
    def metric(self) -> str:
        return str(self.lines[0]["metric"])

    @property
    def reference(self) -> str | None:
        """The method that the others are compared with; None where there is no baseline."""
        name: str | None = self.lines[0]["best_baseline"]
        return name


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared. What is not a baseline comes first in `methods`, what is not trained last."""

    methods: list[Method]
    places: list[Place]
    notes: list[str]

    @property
    def sizes(self) -> list[str]:
        """All sizes, largest first."""
        return sorted({place.size for place in self.places}, key=size_order, reverse=True)

    def largest(self) -> list[Place]:
        """One place per data set and backbone: that with the most training texts."""
        best: dict[tuple[str, str], Place] = {}
        for place in self.places:
            key = (place.dataset, place.backbone)
            if key not in best or size_order(place.size) > size_order(best[key].size):
                best[key] = place
        return list(best.values())


def size_order(size: str) -> float:
    return float("inf") if size == "all" else float(size)


def read_comparison(folders: Sequence[Path]) -> Comparison:
    """All directories together; of what several hold, the first counts, and a note says so.

    Raises UserError where a directory holds no finished comparison, or a file of it is damaged.
    """
    places: dict[tuple[str, ...], tuple[str, Rows, Rows]] = {}
    notes = []
    for folder in folders:
        summary, results = _by_place(_read(folder, "summary")), _by_place(_read(folder, "results"))
        for key, lines in summary.items():
            if key in places:
                what = ", ".join(key[:2]) + ("" if key[2] == "all" else f", {key[2]} texts per label")
                notes.append(f"{what}: shown from {places[key][0]}, left out from {folder.resolve().name}")
            else:
                places[key] = (folder.resolve().name, lines, results[key])
    methods = _methods([run for _, _, runs in places.values() for run in runs])
    order = {method.name: number for number, method in enumerate(methods)}
    found = [Place(sorted(lines, key=lambda line: order[line["method"]]), runs) for _, lines, runs in places.values()]
    return Comparison(methods, found, notes)


def _read(folder: Path, name: str) -> Rows:
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise UserError(
            f"'{folder}' holds no finished comparison ({file.name} is missing): end it with `compare` first"
        )
    try:
        rows: Rows = pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{file}' cannot be read ({error}): run `compare` again, which makes it anew") from error
    if not rows or COLUMNS[name] - rows[0].keys():
        missing = ", ".join(sorted(COLUMNS[name] - (rows[0].keys() if rows else set())))
        raise UserError(
            f"'{file}' is not a comparison's file, or is an old one ({missing} missing): run `compare` again"
        )
    return [NEWER | row for row in rows]


def _by_place(rows: Rows) -> dict[tuple[str, ...], Rows]:
    return {key_of(part[0], PLACE): part for part in rows_by(rows, PLACE)}


def _methods(runs: Rows) -> list[Method]:
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        first.setdefault(run["method"], run)
    methods = [
        Method(name, run["method_name"] not in BASELINES, run["parameters"] > 0, run["method_name"] == "majority")
        for name, run in first.items()
    ]
    return sorted(methods, key=lambda method: (not method.is_ours, not method.is_trained, method.is_majority))
