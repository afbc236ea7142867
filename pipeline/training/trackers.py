"""TensorBoard, Weights & Biases and MLflow beside logs/metrics.jsonl: each run there is one run of ours."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.run_dir import RunDir
from pipeline.engine.config import LoggingConfig

log = logging.getLogger(__name__)


class Trackers:
    """Those of `logging.trackers`, started. Only rank 0 makes them.

    A run that goes on is the same run there: what it was called by is kept in logs/trackers.json.
    """

    def __init__(self, settings: LoggingConfig, run_dir: RunDir, values: Mapping[str, Any], step: int) -> None:
        """Goes on after `step`; from step 0 it is another run. `values`: its config, `flat`.

        Raises UserError where a tracker does not start.
        """
        file = run_dir.trackers_file
        kept: dict[str, str] = read_json(file) if step and file.is_file() else {}
        self._running: dict[str, GeneralTracker] = {}
        for name in settings.trackers:
            if name != "jsonl":
                tracker = _MAKE[name](settings, run_dir, step, kept.get(name))
                self._running[name] = _started(name, tracker, None if name in kept else dict(values))
        ids = {name: _ID[name](tracker) for name, tracker in self._running.items() if name in _ID}
        if ids:
            write_json(file, kept | ids)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Adds metrics. A tracker that fails is left out from then on: training does not end with it."""
        for name, tracker in list(self._running.items()):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:  # a server that is gone raises whatever its client does
                log.warning("train: %s takes no more figures (%s); logs/metrics.jsonl goes on", name, error)
                del self._running[name]

    def close(self) -> None:
        """Ends the runs there. (accelerate's own `end_training` would end the process group with them.)"""
        while self._running:
            name, tracker = self._running.popitem()
            try:
                tracker.finish()
            except Exception as error:
                log.warning("train: %s: %s", name, error)


def _started(name: str, tracker: GeneralTracker, config: dict[str, Any] | None) -> GeneralTracker:
    try:
        tracker.start()
        if config is not None and name != "tensorboard":  # which would make another run of them
            tracker.store_init_configuration(config)
    except Exception as error:  # not logged in, no such server, a run that is gone there
        raise UserError(f"logging.trackers: {name} does not start: {error}") from error
    return tracker


def _tensorboard(_: LoggingConfig, run_dir: RunDir, step: int, __: str | None) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", run_dir.logs, purge_step=step + 1)


def _wandb(settings: LoggingConfig, run_dir: RunDir, _: int, run: str | None) -> GeneralTracker:
    run_dir.logs.mkdir(parents=True, exist_ok=True)  # else wandb takes the system's temporary folder
    kept = {} if run is None else {"id": run, "resume": "allow"}
    return WandBTracker(settings.project, name=_name(settings, run_dir), dir=str(run_dir.logs), **kept)


def _mlflow(settings: LoggingConfig, run_dir: RunDir, _: int, run: str | None) -> GeneralTracker:
    return MLflowTracker(settings.project, run_id=run, run_name=_name(settings, run_dir))


def _name(settings: LoggingConfig, run_dir: RunDir) -> str:
    return settings.name or run_dir.path.resolve().name


_MAKE: dict[str, Callable[[LoggingConfig, RunDir, int, str | None], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
_ID: dict[str, Callable[[Any], str]] = {
    "wandb": lambda tracker: tracker.run.id,
    "mlflow": lambda tracker: tracker.active_run.info.run_id,
}
"""What a run is called there, once it is started."""
