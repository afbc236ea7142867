"""TensorBoard, Weights & Biases and MLflow beside logs/metrics.jsonl: each run there is one run of ours."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json

log = logging.getLogger(__name__)


class Trackers:
    """Those of `logging.trackers`, started. Only rank 0 makes them.

    A run that goes on is the same run there: what it was called by is kept in logs/trackers.json.
    """

    def __init__(self, config: RunConfig, step: int) -> None:
        """Goes on after `step`; from step 0 it is another run. Raises UserError where a tracker does not start."""
        file = config.run_dir.trackers_file
        kept: dict[str, str] = read_json(file) if step and file.is_file() else {}
        self._running: dict[str, GeneralTracker] = {}
        for name in config.logging.trackers:
            if name != "jsonl":
                tracker = _MAKE[name](config, step, kept.get(name))
                self._running[name] = _started(name, tracker, None if name in kept else hyperparameters(config))
        ids = {name: _ID[name](tracker) for name, tracker in self._running.items() if name in _ID}
        if ids:
            write_json(file, kept | ids)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Adds figures. A tracker that fails is left out from then on: training does not end with it."""
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


def hyperparameters(config: RunConfig) -> dict[str, Any]:
    """The whole config, `section.key` -> value."""
    sections = config.model_dump(mode="json")
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def _started(name: str, tracker: GeneralTracker, config: dict[str, Any] | None) -> GeneralTracker:
    try:
        tracker.start()
        if config is not None and name != "tensorboard":  # which would make another run of them
            tracker.store_init_configuration(config)
    except Exception as error:  # not logged in, no such server, a run that is gone there
        raise UserError(f"logging.trackers: {name} does not start: {error}") from error
    return tracker


def _tensorboard(config: RunConfig, step: int, _: str | None) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", config.run_dir.logs, purge_step=step + 1)


def _wandb(config: RunConfig, _: int, run: str | None) -> GeneralTracker:
    config.run_dir.logs.mkdir(parents=True, exist_ok=True)  # else wandb takes the system's temporary folder
    kept = {} if run is None else {"id": run, "resume": "allow"}
    return WandBTracker(config.logging.project, name=_name(config), dir=str(config.run_dir.logs), **kept)


def _mlflow(config: RunConfig, _: int, run: str | None) -> GeneralTracker:
    return MLflowTracker(config.logging.project, run_id=run, run_name=_name(config))


def _name(config: RunConfig) -> str:
    return config.logging.name or config.run_dir.path.resolve().name


_MAKE: dict[str, Callable[[RunConfig, int, str | None], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
_ID: dict[str, Callable[[Any], str]] = {
    "wandb": lambda tracker: tracker.run.id,
    "mlflow": lambda tracker: tracker.active_run.info.run_id,
}
"""What a run is called there, once it is started."""
