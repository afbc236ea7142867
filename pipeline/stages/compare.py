"""Methods x backbones x data sets x training sizes x seeds: each tuned alike, run, and compared with statistics."""

import gc
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock

from pipeline.adapter.directory import load_adapter
from pipeline.comparison.config import ComparisonConfig, Group, cell_config, configs_of, groups, settings, share_of
from pipeline.comparison.curve import read_curve
from pipeline.comparison.tables import write_tables
from pipeline.config import RunConfig, load_config
from pipeline.core.artefact import sha256_of
from pipeline.core.errors import DivergedError, UserError
from pipeline.core.files import read_json, remove, write_json
from pipeline.core.ownership import claim
from pipeline.core.run_lock import RunLock
from pipeline.distributed.launcher import rank, world_size
from pipeline.engine.agreement import check_alike
from pipeline.engine.checks import check_all
from pipeline.engine.startup import on_main_process, start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import check_unchanged, train, training_fingerprint

log = logging.getLogger(__name__)

CELL_FILE = "cell.json"
FIGURES = ("accuracy", "macro_f1", "mcc", "log_loss", "ece", "n")
CHATTY = ("stages.preprocess", "stages.encode_labels", "stages.train", "stages.evaluate", "engine.training_run")
"""Loggers that tell of every run what one line per run tells here."""


def compare(comparison: ComparisonConfig, share: tuple[int, int] | None = None, *, overwrite: bool = False) -> None:
    """Runs what is not done yet; then writes the tables and prints them.

    `share` (i, n): run only the i-th of n shares of the groups, and no tables: the processes of an array job take one
    share each, and the same command without a share ends the comparison. `overwrite`: train cells afresh that are
    finished with another config. Raises UserError where a cell cannot run, and for such cells without `overwrite`.
    """
    # DeepSpeed collects garbage at every start: seconds, with all that is imported here.
    gc.freeze()
    rows: list[dict[str, Any]] = []
    chosen = share_of(groups(comparison), share or (0, 1))
    if world_size() == 1:
        check_cells(comparison, chosen)
    accelerator = _start(comparison, groups(comparison)[0])
    if world_size() > 1:
        check_alike({**comparison.model_dump(mode="json"), "--cells": share, "--overwrite": overwrite})
    if world_size() > 1:
        on_main_process(accelerator, lambda: check_cells(comparison, chosen))
    on_main_process(accelerator, lambda: claim(Path(comparison.dir), "comparison"))
    with _stages_speak_of_trouble_alone():
        for number, group in enumerate(chosen, start=1):
            log.info("compare: %d of %d: %s", number, len(chosen), group.path)
            with _own_group(comparison, group):
                rows += run_group(comparison, group, overwrite=overwrite)
    if share is None and rank() == 0:
        write_tables(Path(comparison.dir), rows, comparison.reference, comparison.published)


def check_cells(comparison: ComparisonConfig, chosen: Sequence[Group]) -> None:
    """Raises one UserError with all that can be known to be wrong with these groups before anything is run."""
    configs = (config for group in chosen for config in configs_of(comparison, group))
    check_all(configs, Path(comparison.dir), "comparison")


def run_group(comparison: ComparisonConfig, group: Group, *, overwrite: bool) -> list[dict[str, Any]]:
    """Tunes on validation with the first seed, then runs the best setting with every seed; one row per seed."""
    points = settings(comparison)
    run = partial(run_cell, comparison, group, overwrite=overwrite)
    method = cell_config(comparison, group, points[0], comparison.seeds[0]).method
    if not method.is_trained:
        return [run({}, comparison.seeds[0])]
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
    return [run(best, seed) | {"grid": grid} for seed in comparison.seeds]


def run_cell(
    comparison: ComparisonConfig,
    group: Group,
    setting: dict[str, Any],
    seed: int,
    *,
    overwrite: bool,
    judge: bool = True,
) -> dict[str, Any]:
    """One row of the results; from cell.json where it is current. Without `judge` it is trained and not evaluated."""
    config = cell_config(comparison, group, setting, seed)
    accelerator = start(config)
    share_data(accelerator, comparison, group, config, overwrite=overwrite)
    data = read_json(config.run_dir.manifest_file)["fingerprint"]
    fingerprint = sha256_of(config.to_kept_yaml(), comparison.split, *(f"{key}={value}" for key, value in data.items()))
    found = on_main_process(accelerator, lambda: _found(config.run_dir.path / CELL_FILE, fingerprint, judge))
    run = str(config.run_dir.path.relative_to(comparison.dir))
    if found is not None:
        return found | {"run": run}
    row = {
        "dataset": group.dataset,
        "backbone": group.backbone,
        "method": group.method,
        "method_name": config.method.name,
        "size": str(group.size),
        "seed": seed,
        "setting": setting,
        "metric": config.train.best_metric,
        "split": comparison.split,
        "run": run,
        "fingerprint": fingerprint,
        **_figures(config, run, comparison.split if judge else None),
    }
    on_main_process(accelerator, lambda: write_json(config.run_dir.path / CELL_FILE, row))
    figure = row["figures"][row["metric"]] if judge else row["validation"]
    on = comparison.split if judge else "validation"
    log.info("compare: %s: %s %.4f on %s, %.0f s", row["run"], row["metric"], figure, on, row["seconds"])
    return row


def share_data(
    accelerator: Accelerator, comparison: ComparisonConfig, group: Group, config: RunConfig, *, overwrite: bool
) -> None:
    """Data and label states that cells have in common are made once, and linked into the cell's run directory."""
    shared = Path(comparison.dir, "shared", group.dataset, group.backbone)
    # A method may have words or a pooling of its own, and a smaller number of texts is drawn by the seed.
    sections = (part.model_dump_json() for part in (config.backbone, config.data, config.labels))
    made_from = sha256_of(*sections, f"seed {config.run.seed}" if config.data.is_drawn else "any seed")
    run = config.run.model_copy(update={"dir": str(shared / f"{group.size}-{made_from[:8]}")})
    common = config.model_copy(update={"run": run})
    shared.mkdir(parents=True, exist_ok=True)
    # Other ranks of this process group must be let in, other processes not.
    with FileLock(shared / ".lock") if accelerator.is_main_process else nullcontext():
        preprocess(common)
        labels = encode_labels(common)

    def link() -> None:
        cell, source = config.run_dir, common.run_dir
        cell.create()
        _make_room(config, training_fingerprint(common, labels), overwrite)
        _link(source.data, cell.data)
        _link(source.labels, cell.labels)

    on_main_process(accelerator, link)


def _make_room(config: RunConfig, fingerprint: dict[str, str], overwrite: bool) -> None:
    """Keeps the cell's config, if it may become the cell's: before anything of another config is changed.

    Raises UserError where the cell is finished with another one.
    """
    run = config.run_dir
    if run.is_finished:
        try:
            check_unchanged(config, read_json(run.summary_file)["fingerprint"], fingerprint)
        except UserError:
            if not overwrite:
                raise
            run.remove_training()
    elif not _is_kept(config):
        # Of a run that was interrupted, and cannot go on with another config.
        remove(run.checkpoints)
    run.write_config(config.to_kept_yaml())


def _is_kept(config: RunConfig) -> bool:
    """Is config.yaml in the run directory this config? What a new version adds to it is at its default there."""
    file = config.run_dir.config_file
    try:
        return not file.is_file() or load_config(file, [f"run.dir={json.dumps(config.run.dir)}"]) == config
    except UserError:
        return False


def _link(target: Path, link: Path) -> None:
    """A relative link: a comparison may be moved and copied. What it takes the place of can be made again."""
    way = os.path.relpath(target.resolve(), link.parent.resolve())
    if not link.is_symlink() or os.readlink(link) != way:
        remove(link)
        link.symlink_to(way, target_is_directory=True)


def _says(file: Path, config: RunConfig) -> bool:
    """Whether a config.yaml means this config, in whatever words: those of an older version have a key more or less."""
    try:
        return load_config(file).to_yaml() == config.to_yaml()
    except UserError:
        return False


def _found(file: Path, fingerprint: str, judge: bool) -> dict[str, Any] | None:
    """The row of a cell that was run with this config on these data."""
    if not file.is_file():
        return None
    row: dict[str, Any] = read_json(file)
    return row if row["fingerprint"] == fingerprint and (row["figures"] is not None or not judge) else None


def _figures(config: RunConfig, run: str, split: str | None) -> dict[str, Any]:
    """Trains, and evaluates on `split`; what came out of it. A UserError tells the run that it is about."""
    try:
        return _trained_figures(config, split)
    except UserError as error:
        raise type(error)(f"{run}: {error}") from error


def _trained_figures(config: RunConfig, split: str | None) -> dict[str, Any]:
    summary = train(config)
    metric = config.train.best_metric
    judged, validation = None, summary["validation"]
    if split is not None:
        splits = {split} if config.method.is_trained else {"validation", split}
        evaluated = config.evaluate.model_copy(update={"splits": sorted(splits)})
        figures = evaluate(config.model_copy(update={"evaluate": evaluated}))
        judged, validation = figures[split], validation or figures["validation"]
    curve = read_curve(config.run_dir.metrics_log, metric)
    return {
        "validation": validation.get(metric),
        "figures": judged and {key: judged[key] for key in FIGURES},
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "seconds": curve[-1]["seconds"] if curve else 0.0,
        "parameters": _parameters(config),
        "curve": curve,
    }


def _parameters(config: RunConfig) -> int:
    """Trained elements, as the adapter holds them."""
    if not config.method.is_trained:
        return 0
    return sum(tensor.numel() for tensor in load_adapter(config.run_dir.adapter).method_state.values())


@contextmanager
def _own_group(comparison: ComparisonConfig, group: Group) -> Iterator[None]:
    """A group's runs are one process group's alone: shares that overlap would write into one another's.

    Raises UserError where another process is at them.
    """
    accelerator = _start(comparison, group)
    lock = RunLock(Path(comparison.dir, group.path))
    on_main_process(accelerator, lock.acquire)
    try:
        yield
    finally:
        lock.release()


def _start(comparison: ComparisonConfig, group: Group) -> Accelerator:
    return start(cell_config(comparison, group, settings(comparison)[0], comparison.seeds[0]))


@contextmanager
def _stages_speak_of_trouble_alone() -> Iterator[None]:
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(f"pipeline.{name}") for name in CHATTY]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
