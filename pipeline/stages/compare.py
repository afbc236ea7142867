"""Methods x backbones x data sets x training sizes x seeds: each tuned alike, run, and compared with statistics."""

import gc
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.adapter.directory import load_adapter
from pipeline.backbone.config import BackboneConfig
from pipeline.comparison.config import ComparisonConfig, Group, cell_config, groups, settings, share_of
from pipeline.comparison.curve import read_curve
from pipeline.comparison.tables import write_tables
from pipeline.config import RunConfig, load_config
from pipeline.core.artefact import FORMAT, Artefact, defaults_of, sha256_of, within
from pipeline.core.errors import DivergedError, UserError
from pipeline.core.files import read_json, remove, write_json
from pipeline.core.ownership import claim
from pipeline.core.run_lock import RunLock
from pipeline.core.yaml import load_yaml
from pipeline.data.fingerprint import data_absent, made_from
from pipeline.distributed.ranks import Ranks
from pipeline.engine.agreement import check_alike
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.startup import start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from pipeline.training.provenance import check_training, training_fingerprint

log = logging.getLogger(__name__)

CELL_FILE = "cell.json"
CELL_FORMAT = "2"
"""Of cell.json. 1 had one hash for all parts of its fingerprint."""
FIGURES = ("accuracy", "macro_f1", "mcc", "log_loss", "ece", "n")
CHATTY = (
    "stages.preprocess",
    "stages.encode_labels",
    "stages.train",
    "stages.evaluate",
    "training.loop",
    "core.artefact",
)
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
    ranks = _start(comparison, groups(comparison)[0])
    check_alike({**comparison.model_dump(mode="json"), "--cells": share, "--overwrite": overwrite}, ranks)
    ranks.on_main(lambda: claim(Path(comparison.dir), "comparison"))
    backbones = _Backbones()
    with _stages_speak_of_trouble_alone():
        for number, group in enumerate(chosen, start=1):
            log.info("compare: %d of %d: %s", number, len(chosen), group.path)
            with _own_group(comparison, group):
                rows += run_group(comparison, group, backbones, overwrite=overwrite)
    if share is None:
        ranks.on_main(lambda: write_tables(Path(comparison.dir), rows, comparison.reference, comparison.published))


class _Backbones:
    """Those of the cells, each made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[BackboneConfig, bool], Backbone] = {}

    def of(self, config: RunConfig) -> Backbone:
        key = (config.backbone, config.data.special_tokens)
        return self._made.setdefault(key, backbone_of(config.backbone, config.data))


def run_group(
    comparison: ComparisonConfig, group: Group, backbones: _Backbones, *, overwrite: bool
) -> list[dict[str, Any]]:
    """Tunes on validation with the first seed, then runs the best setting with every seed; one row per seed."""
    points = settings(comparison)
    run = partial(run_cell, comparison, group, backbones, overwrite=overwrite)
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
    backbones: _Backbones,
    setting: dict[str, Any],
    seed: int,
    *,
    overwrite: bool,
    judge: bool = True,
) -> dict[str, Any]:
    """One row of the results; from cell.json where it is current. Without `judge` it is trained and not evaluated."""
    config = cell_config(comparison, group, setting, seed)
    _, ranks = start(config)
    backbone = backbones.of(config)
    share_data(ranks, comparison, group, config, backbone, overwrite=overwrite)
    manifest = read_json(config.run_dir.manifest_file)
    fingerprint = _cell_fingerprint(config, comparison.split, manifest)
    found = ranks.on_main(lambda: _found(config, fingerprint, judge))
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
        **_figures(config, backbone, run, comparison.split if judge else None),
    }
    ranks.on_main(lambda: write_json(config.run_dir.path / CELL_FILE, row))
    figure = row["figures"][row["metric"]] if judge else row["validation"]
    on = comparison.split if judge else "validation"
    log.info("compare: %s: %s %.4f on %s, %.0f s", row["run"], row["metric"], figure, on, row["seconds"])
    return row


def share_data(
    ranks: Ranks,
    comparison: ComparisonConfig,
    group: Group,
    config: RunConfig,
    backbone: Backbone,
    *,
    overwrite: bool,
) -> None:
    """Data and label states that cells have in common are made once, and linked into the cell's run directory."""
    shared = Path(comparison.dir, "shared", group.dataset, group.backbone)
    # A method may have words or a pooling of its own, and a smaller number of texts is drawn by the seed.
    # Not the defaults, so that a release which adds a key goes on with what is there.
    sections = (part.model_dump_json(exclude_defaults=True) for part in (config.backbone, config.data, config.labels))
    made_from = sha256_of(*sections, f"seed {config.run.seed}" if config.data.is_drawn else "any seed")
    run = config.run.model_copy(update={"dir": str(shared / f"{group.size}-{made_from[:8]}")})
    common = config.model_copy(update={"run": run})
    shared.mkdir(parents=True, exist_ok=True)
    # Other ranks of this process group must be let in, other processes not.
    with FileLock(shared / ".lock") if ranks.is_main else nullcontext():
        manifest = preprocess(common, backbone)
        labels = encode_labels(common, backbone)
    given = (config.method, config.train, config.backbone, config.run.seed)
    fingerprint = training_fingerprint(*given, manifest, labels)

    def link() -> None:
        cell, source = config.run_dir, common.run_dir
        cell.create()
        _make_room(config, fingerprint, overwrite)
        _link(source.data, cell.data)
        _link(source.labels, cell.labels)

    ranks.on_main(link)


def _make_room(config: RunConfig, fingerprint: dict[str, str], overwrite: bool) -> None:
    """Keeps the cell's config, if it may become the cell's: before anything of another config is changed.

    Raises UserError where the cell is finished with another one.
    """
    run = config.run_dir
    if run.is_finished:
        try:
            check_training(run, config.method, fingerprint)
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


def _cell_fingerprint(config: RunConfig, split: str, manifest: dict[str, Any]) -> dict[str, str]:
    """Everything the row of a cell depends on, part by part."""
    sections = load_yaml(config.to_kept_yaml())
    return {
        FORMAT: CELL_FORMAT,
        **{f"{name}.{key}": str(value) for name, section in sections.items() for key, value in section.items()},
        "the split that is compared": split,
        **within("data", made_from(manifest)),
    }


def _found(config: RunConfig, fingerprint: dict[str, str], judge: bool) -> dict[str, Any] | None:
    """The row of a cell that was run with this config on these data."""
    file = config.run_dir.path / CELL_FILE
    if not file.is_file():
        return None
    sections = {name: type(section) for name, section in config}
    absent = {**defaults_of(**sections), **within("data", {**data_absent(), FORMAT: "2"})}
    artefact = Artefact(file, "compare", absent)
    row: dict[str, Any] = read_json(file)
    # Version 0.1 had one hash: what it did is found finished, stage by stage.
    old = row["fingerprint"] if isinstance(row["fingerprint"], dict) else {}
    return row if artefact.is_current(old, fingerprint) and (row["figures"] is not None or not judge) else None


def _figures(config: RunConfig, backbone: Backbone, run: str, split: str | None) -> dict[str, Any]:
    """Trains, and evaluates on `split`; what came out of it. A UserError tells the run that it is about."""
    try:
        return _trained_figures(config, backbone, split)
    except UserError as error:
        raise type(error)(f"{run}: {error}") from error


def _trained_figures(config: RunConfig, backbone: Backbone, split: str | None) -> dict[str, Any]:
    summary = train(config, backbone)
    metric = config.train.best_metric
    judged, validation = None, summary["validation"]
    if split is not None:
        splits = {split} if config.method.is_trained else {"validation", split}
        evaluated = config.evaluate.model_copy(update={"splits": sorted(splits)})
        figures = evaluate(config.model_copy(update={"evaluate": evaluated}), backbone)
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
    ranks = _start(comparison, group)
    lock = RunLock(Path(comparison.dir, group.path))
    ranks.on_main(lock.acquire)
    try:
        yield
    finally:
        lock.release()


def _start(comparison: ComparisonConfig, group: Group) -> Ranks:
    return start(cell_config(comparison, group, settings(comparison)[0], comparison.seeds[0]))[1]


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
