"""What a comparison's rows say together: tidy files for programs, tables with intervals for people.

results.parquet, results.csv    one row per (data set, backbone, method, size, seed)
summary.parquet, summary.csv    one row per (data set, backbone, method, size), beside what it is compared with
tables.md                       the same for reading: all means side by side, then each data set with its intervals

Where methods are trained to convergence (train.early_stopping_patience), those of which a seed did not converge are
marked. Readings are of training texts by the backbone, each as often as it was read. Neither they nor seconds count
evaluations, and seconds of a method that is fitted to stored states are the fit's alone.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.comparison.curve import seconds_to_step, steps_to_share, value_within
from pipeline.comparison.statistics import Difference, compare_predictions
from pipeline.comparison.wording import WORDING_COLUMNS, wording_cells, wording_means
from pipeline.core.errors import UserError
from pipeline.core.escapes import for_markdown
from pipeline.core.files import atomic_file, remove, write_text
from pipeline.core.output import say
from pipeline.core.run_dir import RunDir
from pipeline.methods import BASELINES

Row = dict[str, Any]
PLACE = ("dataset", "backbone", "size")
MARK = "†"
NOT_CONVERGED = "training of a seed or more reached its last step before it had converged"
EQUAL_STEPS = "Trained for equal steps, not to convergence."

Published = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Backbone -> data set -> method -> value of the metric."""


def write_tables(
    folder: Path,
    rows: list[Row],
    reference: str | None = None,
    published: Published | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes all files into the comparison's directory and prints tables.md.

    All methods are compared with `reference`, or with the best baseline; `published` metrics stand beside them.
    `about`: what each data set is.
    """
    _write(folder / "results", [_tidy(row) for row in rows])
    summary = [line for place in rows_by(rows, PLACE) for line in summarize(folder, place, reference)]
    to_convergence = any(row["patience"] for row in rows)
    for line in summary:
        line["converged"] = line["converged"] if to_convergence else None
        line["about"] = (about or {}).get(line["dataset"])
        metrics = (published or {}).get(line["backbone"], {}).get(line["dataset"], {})
        line["published"] = metrics.get(line["method"]) if line["size"] == "all" else None
    _write(folder / "summary", summary)
    tables = [_overview(part) for part in rows_by(summary, ["size"])]
    tables += [_table(place) for place in rows_by(summary, PLACE)]
    text = "\n\n".join(tables) + "\n"
    write_text(folder / "tables.md", text)
    say(text)


def remove_tables(folder: Path) -> None:
    """Before a run that they tell of is made anew: what ends in between must not leave them as if they were of it."""
    for name in ("results.parquet", "results.csv", "summary.parquet", "summary.csv", "tables.md"):
        remove(folder / name)


def summarize(folder: Path, rows: list[Row], reference: str | None = None) -> list[Row]:
    """One line per method of one (data set, backbone, size), best mean first."""
    methods = {part[0]["method"]: part for part in rows_by(rows, ["method"])}
    baselines = {name: part for name, part in methods.items() if part[0]["method_name"] in BASELINES}
    # Chosen on validation, so that the choice does not favour it on the test texts.
    best = reference or max(baselines, key=lambda name: _mean(baselines[name], "validation"), default=None)
    trained = [part for part in methods.values() if part[0]["steps"]]
    fastest = min(trained, key=lambda part: _mean(part, "seconds"), default=[])
    equal = max((row["seconds"] for row in fastest), default=0.0)
    lines = []
    for part in methods.values():
        other = None if best is None or part is methods[best] else methods[best]
        lines.append(_line(folder, part, other, equal) | {"best_baseline": best})
    return sorted(lines, key=lambda line: -line["mean"])


def _line(folder: Path, rows: list[Row], baseline: list[Row] | None, equal_seconds: float) -> Row:
    """Mean over seeds, spread, cost, and the difference to the baseline."""
    metric, first = rows[0]["metric"], rows[0]
    values = [row["figures"][metric] for row in rows]
    within = [value for row in rows if (value := value_within(row["curve"], equal_seconds)) is not None]
    difference = None if baseline is None else _difference(folder, rows, baseline)
    return {
        **{key: first[key] for key in ("dataset", "backbone", "size", "method", "metric")},
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "difference": None if difference is None else difference.mean,
        "low": None if difference is None else difference.low,
        "high": None if difference is None else difference.high,
        "mcnemar_p": None if difference is None else difference.mcnemar_p,
        "verdict": None if difference is None else difference.verdict,
        "validation": _mean(rows, "validation"),
        "equal_seconds": equal_seconds,
        "validation_at_equal_seconds": float(np.mean(within)) if len(within) == len(rows) else None,
        **wording_means(rows),
        **_cost(rows),
        "converged": all(row["converged"] for row in rows),
        "parameters": first["parameters"],
        "setting": json.dumps(first["setting"]),
    }


def _cost(rows: list[Row]) -> Row:
    """Means over seeds; None where a seed does not say."""
    steps = [count for row in rows if (count := steps_to_share(row["curve"])) is not None]
    to_best = [seconds_to_step(row["curve"], row["best_step"]) if row["steps"] else row["seconds"] for row in rows]
    known = [seconds for seconds in to_best if seconds is not None]
    return {
        "seconds": _mean(rows, "seconds"),
        "seconds_to_best": float(np.mean(known)) if len(known) == len(rows) else None,
        "steps": round(_mean(rows, "steps")),
        "steps_to_best": round(_mean(rows, "best_step")),
        "steps_to_95_percent": float(np.mean(steps)) if steps else None,
        "readings": None if any(row["readings"] is None for row in rows) else round(_mean(rows, "readings")),
    }


def _difference(folder: Path, rows: list[Row], baseline: list[Row]) -> Difference:
    truth, predicted = _predictions(folder, [*rows, *baseline])
    labels, indices = np.unique(np.concatenate([truth[None], predicted]), return_inverse=True)
    truth, first, second = np.split(indices.reshape(-1, truth.size), [1, 1 + len(rows)])
    same_seeds = [row["seed"] for row in rows] == [row["seed"] for row in baseline]
    return compare_predictions(truth[0], first, second, len(labels), rows[0]["metric"], same_seeds=same_seeds)


def _predictions(folder: Path, rows: list[Row]) -> tuple[NDArray, NDArray]:
    """Labels [N] and predictions [S, N] of the texts compared on, as words, in the order of the source.

    Raises UserError where the rows are of other texts, or of texts with other labels.
    """
    found = []
    for row in rows:
        columns = ["split", "row", "label", "prediction"]
        table = pq.read_table(RunDir(folder / row["run"]).predictions_file, columns=columns)
        found.append(table.filter(pc.equal(table["split"], row["split"])).sort_by("row"))
        if not found[-1].select(["row", "label"]).equals(found[0].select(["row", "label"])):
            raise UserError(
                f"'{rows[0]['run']}' and '{row['run']}' in '{folder}' were not judged on the same {row['split']} texts "
                f"and labels: run compare again; if that does not help, give data and labels.names in base or "
                f"datasets.{row['dataset']} alone"
            )
    predicted = [table["prediction"].to_pylist() for table in found]
    return np.asarray(found[0]["label"].to_pylist()), np.asarray(predicted)


def _tidy(row: Row) -> Row:
    """Nested metrics as columns; what varies in form as JSON."""
    plain = {key: value for key, value in row.items() if key not in ("figures", "fingerprint")}
    figures = row["figures"]
    metrics = {
        f"{row['split']}_{key}": json.dumps(value) if isinstance(value, dict) else value
        for key, value in figures.items()
    }
    nested = {key: json.dumps(plain[key]) for key in ("setting", "grid", "curve") if key in plain}
    return plain | metrics | {"grid": "[]"} | nested


def _write(path: Path, lines: list[Row]) -> None:
    table = pa.Table.from_pylist(lines)
    with atomic_file(path.with_suffix(".parquet")) as file:
        pq.write_table(table, file)
    with atomic_file(path.with_suffix(".csv")) as file:
        pyarrow.csv.write_csv(table, file)


def _overview(lines: list[Row]) -> str:
    """All means and spreads of one size: a row per backbone and method, a column per data set (paper, Table 1)."""
    datasets = list(dict.fromkeys(line["dataset"] for line in lines))
    metrics = {line["dataset"]: line["metric"] for line in lines}
    body = []
    for part in rows_by(lines, ["backbone", "method"]):
        cells = {line["dataset"]: _mean_and_spread(line) + _published(line) for line in part}
        names = [for_markdown(part[0][key]) for key in ("backbone", "method")]
        body.append([*names, *(cells.get(dataset, "") for dataset in datasets)])
    header = ["backbone", "method", *(f"{for_markdown(dataset)} ({metrics[dataset]})" for dataset in datasets)]
    rules = ["---", "---", *["---:"] * len(datasets)]
    note = "↑ better, ↓ worse than what it is compared with (below): the interval excludes zero."
    if not any(line["best_baseline"] for line in lines):
        note = "Nothing is compared with another: there is no baseline. `--against METHOD` names what to compare with."
    if any(_published(line) for line in lines):
        note += " In brackets: the published value."
    return "\n".join(
        [f"## {_size(lines[0])}", "", *_markdown([header, rules, *body]), "", f"{note}{_convergence(lines)}"]
    )


def _mean_and_spread(line: Row) -> str:
    mark = f" {MARK}" if line["converged"] is False else ""
    mark += {"better": " ↑", "worse": " ↓"}.get(line["verdict"] or "", "")
    return f"{line['mean']:.4f}" + (f" ± {line['sd']:.4f}" if line["sd"] is not None else "") + mark


def _convergence(lines: list[Row]) -> str:
    """What a note says of it."""
    if any(line["steps"] and line["converged"] is None for line in lines):
        return f" {EQUAL_STEPS}"
    return f" {MARK} {NOT_CONVERGED}." if any(line["converged"] is False for line in lines) else ""


def _published(line: Row) -> str:
    return "" if line["published"] is None else f" ({line['published']:.4f})"


def _size(line: Row) -> str:
    return "all training texts" if line["size"] == "all" else f"{line['size']} training texts per label"


def _markdown(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def _table(lines: list[Row]) -> str:
    """One data set, backbone and size, with intervals and costs."""
    first = lines[0]
    reference = first["best_baseline"]
    compared = [f"difference to {for_markdown(reference)}", "verdict", "McNemar p (accuracy)"] if reference else []
    columns = ["method", first["metric"], *compared]
    asked = any(line["words_read"] is not None for line in lines)
    columns += WORDING_COLUMNS if asked else []
    columns += ["validation", f"validation in {first['equal_seconds']:.0f} s", "steps to 95 %", "steps to best"]
    columns += ["seconds to best", "steps", "seconds", "readings", "parameters"]
    body = [
        [
            f"**{for_markdown(line['method'])}**" if line["method"] == reference else for_markdown(line["method"]),
            _mean_and_spread(line),
            *([_interval(line), line["verdict"] or "", _number(line["mcnemar_p"], ".3f")] if reference else []),
            *(wording_cells(line) if asked else []),
            _number(line["validation"], ".4f"),
            _number(line["validation_at_equal_seconds"], ".4f"),
            _number(line["steps_to_95_percent"], ".0f"),
            _number(line["steps_to_best"] or None, ",d"),
            _number(line["seconds_to_best"] or None, ".1f"),
            _number(line["steps"] or None, ",d"),
            _number(line["seconds"] or None, ".1f"),
            _number(line["readings"], ",d"),
            f"{line['parameters']:,}",
        ]
        for line in lines
    ]
    seeds = max(line["seeds"] for line in lines)
    title = (
        f"### {for_markdown(first['dataset'])}, {for_markdown(first['backbone'])}, {_size(first)}, up to {seeds} seeds"
    )
    rules = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join([title, "", *_markdown([columns, rules, *body])])


def _interval(line: Row) -> str:
    if line["difference"] is None:
        return ""
    return f"{line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _mean(rows: list[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def key_of(row: Row, keys: Iterable[str]) -> tuple[str, ...]:
    """The values of these keys."""
    return tuple(row[key] for key in keys)


def rows_by(rows: list[Row], keys: Iterable[str]) -> list[list[Row]]:
    """Rows with equal keys together, in the order in which the keys first occur."""
    keys = list(keys)
    places = {key_of(row, keys): place for place, row in reversed(list(enumerate(rows)))}
    ordered = sorted(rows, key=lambda row: places[key_of(row, keys)])
    return [list(part) for _, part in groupby(ordered, key=lambda row: key_of(row, keys))]
