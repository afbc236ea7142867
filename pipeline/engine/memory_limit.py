"""Forward passes that memory was too short for: noted in the run directory, so that from then on they are smaller."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from pipeline.core.errors import PassTooLargeError, UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.run_dir import RunDir
from pipeline.core.settings import Settings
from pipeline.distributed.device import free_memory
from pipeline.distributed.launcher import world_size

log = logging.getLogger(__name__)

Section = TypeVar("Section", bound=Settings)
Stage = TypeVar("Stage", bound=Callable[..., Any])


def within_memory(run: RunDir, settings: Section, section: str) -> Section:
    """A config section with `tokens_per_batch` no larger than what has fitted. Every rank must read the same."""
    limit = _noted(run).get(key := f"{section}.tokens_per_batch")
    own = getattr(settings, "tokens_per_batch")  # noqa: B009 (of the sections that have it)
    if limit is None or (own is not None and own <= limit):
        return settings
    log.info("%s=%d: larger passes did not fit into memory (%s)", key, limit, run.memory_file)
    return settings.model_copy(update={"tokens_per_batch": limit})


def in_smaller_passes(stage: Stage) -> Stage:
    """A stage that is called with a config; where it raises PassTooLargeError it begins again, in smaller passes."""

    @wraps(stage)
    def tried(config: Any, *given: Any, **named: Any) -> Any:
        while True:
            try:
                return stage(config, *given, **named)
            except PassTooLargeError as error:
                _shrink(config.run_dir, error, stage.__name__)
            named.pop("overwrite", None)  # what it was to take away is gone: a checkpoint is of this training

    return tried  # type: ignore[return-value]


def _shrink(run: RunDir, error: PassTooLargeError, stage: str) -> None:
    """Notes smaller passes.

    Raises the error where the pass cannot be smaller; and UserError where other ranks wait in it, which all must begin
    anew: launch scripts and Slurm jobs do so, as after a preemption.
    """
    if not error.can_shrink:
        raise error
    write_json(run.memory_file, {**_noted(run), error.key: error.limit})
    said = f"{stage}: {error}"
    if world_size() > 1:
        write_json(run.preempted, {"signal": "out of memory"})
        raise UserError(f"{said}; that is noted, and the same command goes on with it")
    log.warning("%s; done, and on with it", said)
    free_memory()


def _noted(run: RunDir) -> dict[str, int]:
    return dict(read_json(run.memory_file)) if run.memory_file.is_file() else {}
