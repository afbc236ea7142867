"""What the cells of a data set must have in common: the texts and labels they are judged on, and the metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.data.config import DataConfig

SOURCES = ("data.validation", "data.test", "data.train")
LONGEST_SHOWN = 200
"""Characters of a value in a message: a list of all labels may be long."""

Judged = dict[str, Any]
"""section.key -> value, of all that decides what a cell is judged on."""


def check_alike(cells: Iterable[tuple[str, str, RunConfig]], split: str) -> None:
    """Raises UserError where two cells of a data set are judged on other texts or labels, or by another metric.

    `cells`: data set, name and config of each, one for every point of its grid. `split`: what is compared on.
    """
    firsts: dict[str, tuple[str, Judged]] = {}
    for dataset, name, config in cells:
        judged = _judged(config.data, config.labels.names, config.train.compared_by, split)
        other, first = firsts.setdefault(dataset, (name, judged))
        for key, value in judged.items():
            if not _is_same(key, value, first[key]):
                where = "at another point of its grid" if other == name else f"in {other}"
                raise UserError(
                    f"{name}: {key} is {_shown(value)}, but {_shown(first[key])} {where}: cells of a data set are "
                    f"compared on the same texts and labels by the same metric, so give it in base or "
                    f"datasets.{dataset} alone"
                )


def _judged(data: DataConfig, names: list[str] | None, metric: str, split: str) -> Judged:
    """How texts are put to the backbone (data.template, data.max_length, ...) is a cell's own."""
    # Settings are chosen on validation, whatever is compared on.
    splits = list(dict.fromkeys(("validation", split)))
    shares = [data.shares.get(name, 0) for name in splits]
    is_cut = any(shares)
    return {
        "train.best_metric": metric,
        **{f"data.{name}": getattr(data, name) for name in splits},
        "data.split": shares if is_cut else None,
        **({"data.train": data.train} if is_cut else {}),
        **{f"data.{name}_limit": getattr(data, f"{name}_limit") for name in splits},
        **{f"data.{key}": getattr(data, key) for key in ("text", "text_pair", "label", "quoting")},
        "labels.names": names,
    }


def _is_same(key: str, value: Any, other: Any) -> bool:
    if key in SOURCES and value is not None and other is not None:
        return Path(value).absolute() == Path(other).absolute()
    return bool(value == other)


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
