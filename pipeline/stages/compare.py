"""Methods x backbones x data sets x training sizes x seeds: each tuned alike, run, and compared with statistics."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.comparison.config import ComparisonConfig, Group, configs_of, groups, settings, share_of
from pipeline.comparison.tables import write_tables
from pipeline.core.errors import DivergedError, UserError
from pipeline.core.files import write_json
from pipeline.core.ownership import claim
from pipeline.core.run_lock import RunLock
from pipeline.engine.agreement import check_alike
from pipeline.engine.checks import check_all
from pipeline.engine.startup import join, start
from pipeline.stages.cell import Backbones, Cell, backbone_among, cell_of

log = logging.getLogger(__name__)

QUIET_LOGGERS = (
    "stages.preprocess",
    "stages.encode_labels",
    "stages.encode_texts",
    "stages.train",
    "stages.evaluate",
    "training.loop",
    "core.artefact",
)
"""Loggers whose lines about every run are one line per run here."""


def compare(comparison: ComparisonConfig, share: tuple[int, int] | None = None, *, overwrite: bool = False) -> None:
    """Runs what is not done yet; then writes the tables and prints them.

    `share` (i, n): run only the i-th of n shares of the groups, and no tables: the processes of an array job take one
    share each, and the same command without a share ends the comparison. `overwrite`: train cells afresh that are
    finished with another config. Raises UserError where a cell cannot run, and for such cells without `overwrite`.
    """
    rows: list[dict[str, Any]] = []
    chosen = share_of(groups(comparison), share or (0, 1))
    backbones: Backbones = {}
    first = next(configs_of(comparison, groups(comparison)[0]))
    join(first).on_main(lambda: check_cells(comparison, chosen, backbones))
    _, ranks = start(first)
    check_alike({**comparison.model_dump(mode="json"), "--cells": share, "--overwrite": overwrite}, ranks)
    ranks.on_main(lambda: claim(Path(comparison.dir), "comparison"))
    with _quiet_stages():
        for number, group in enumerate(chosen, start=1):
            log.info("compare: %d of %d: %s", number, len(chosen), group.path)
            with _own_group(comparison, group):
                rows += run_group(comparison, group, backbones, overwrite=overwrite)
    if share is None:
        given = (comparison.reference, comparison.published, comparison.about)
        ranks.on_main(lambda: write_tables(Path(comparison.dir), rows, *given))


def check_cells(comparison: ComparisonConfig, chosen: Sequence[Group], backbones: Backbones) -> None:
    """Raises one UserError with all that can be known to be wrong with these groups before anything is run."""
    configs = (config for group in chosen for config in configs_of(comparison, group))
    runs = ((config, backbone_among(backbones, config.backbone, config.data)) for config in configs)
    check_all(runs, Path(comparison.dir), "comparison")


def run_group(
    comparison: ComparisonConfig, group: Group, backbones: Backbones, *, overwrite: bool
) -> list[dict[str, Any]]:
    """Tunes on validation with the first seed, then runs the best setting with every seed; one row per seed."""
    method = next(configs_of(comparison, group)).method
    points = settings(comparison, method)

    def run(point: dict[str, Any], seed: int, *, judge: bool = True) -> dict[str, Any]:
        cell = cell_of(comparison, group, point, seed, backbones)
        for backbone in backbones.values():
            if backbone is not cell.backbone:
                backbone.kept = None  # one model in memory, not one of each backbone
        return run_cell(cell, overwrite=overwrite, judge=judge)

    tried: list[dict[str, Any]] = []
    for point in points if len(points) > 1 else []:
        try:
            tried.append(run(point, comparison.seeds[0], judge=False))
        except DivergedError as error:
            log.warning("compare: %s is left out: %s", json.dumps(point), error)
    if len(points) > 1 and not tried:
        raise UserError(f"compare: no setting of the grid could be trained for {group.path}")
    best = max(tried, key=lambda row: row["validation"])["setting"] if tried else points[0]
    grid = [{"setting": row["setting"], "validation": row["validation"]} for row in tried]
    seeds = comparison.seeds if method.is_trained else comparison.seeds[:1]
    return [run(best, seed) | {"grid": grid} for seed in seeds]


def run_cell(cell: Cell, *, overwrite: bool, judge: bool = True) -> dict[str, Any]:
    """One row of the results; from cell.json where it is current. Without `judge` it is trained and not evaluated."""
    _, ranks = start(cell.config)
    fingerprint = cell.prepare(ranks, overwrite=overwrite)
    found = ranks.on_main(lambda: cell.found(fingerprint, judge))
    if found is not None:
        return found
    row = cell.description() | {"fingerprint": fingerprint} | cell.results(judge)
    ranks.on_main(lambda: write_json(cell.file, row))
    value = row["figures"][row["metric"]] if judge else row["validation"]
    on = cell.split if judge else "validation"
    log.info("compare: %s: %s %.4f on %s, %.0f s", cell.run, row["metric"], value, on, row["seconds"])
    return row


@contextmanager
def _own_group(comparison: ComparisonConfig, group: Group) -> Iterator[None]:
    """A group's runs are one process group's alone: shares that overlap would write into one another's.

    Raises UserError where another process is at them.
    """
    _, ranks = start(next(configs_of(comparison, group)))
    lock = RunLock(Path(comparison.dir, group.path))
    ranks.on_main(lock.acquire)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet_stages() -> Iterator[None]:
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(f"pipeline.{name}") for name in QUIET_LOGGERS]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
