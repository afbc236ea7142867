"""Whether, and from where, training goes on: the rules of `train.resume`."""

import logging
from pathlib import Path

from pipeline.core.artefact import Absent, Fingerprint, differences
from pipeline.core.errors import UserError, about
from pipeline.core.run_dir import RunDir
from pipeline.distributed.ranks import Ranks
from pipeline.training.checkpoint import checkpoints, newest_checkpoint, read_checkpoint
from pipeline.training.config import TrainConfig
from pipeline.training.run_state import RunState

log = logging.getLogger(__name__)

HARMLESS = {"train.eval_every", "train.early_stopping_patience"}
"""Parts of the fingerprint that may change between stop and resume: the parameters do not depend on them."""
BATCH = ("train.batch_size", "train.gradient_accumulation", "train.tokens_per_batch")


def checkpoint_to_resume(resume: str, run_dir: RunDir) -> Path | None:
    """The checkpoint that `train.resume` asks for, verified; None to start afresh. Rank 0 decides for all."""
    folder = run_dir.checkpoints
    if resume == "never":
        if checkpoints(folder):
            raise UserError(
                f"'{folder}' holds checkpoints and train.resume is never: "
                "give --overwrite to train afresh, or set train.resume=auto"
            )
        return None
    if resume == "auto":
        return newest_checkpoint(folder)
    inside = run_dir.path / resume
    return inside if inside.is_dir() else Path(resume)


def state_to_resume(ranks: Ranks, resume: str, run_dir: RunDir) -> RunState | None:
    """What an interrupted run left, read by every rank; None to start afresh. Collective."""
    path = ranks.on_main(lambda: checkpoint_to_resume(resume, run_dir))
    if path is None:
        return None
    state = load_state(ranks, path)
    log.info("train: goes on after step %d, from %s", state.step, path)
    return state


def resumed_settings(
    settings: TrainConfig, state: RunState, fingerprint: Fingerprint, absent: Absent, world_size: int
) -> TrainConfig:
    """The settings to go on with: as given, but with the checkpoint's global batch on this number of ranks.

    Raises UserError where `check_resumable` does.
    """
    check_resumable(settings, state, fingerprint, absent, world_size)
    if changed := differences(state.fingerprint, fingerprint, absent):
        log.info("train: goes on with %s", "; ".join(changed))
    if _has_same_batch(settings, state, world_size):
        return settings
    return _share_batch(settings, state.global_batch, world_size)


def check_resumable(
    settings: TrainConfig, state: RunState, fingerprint: Fingerprint, absent: Absent, world_size: int
) -> None:
    """UserError that names the settings under which the checkpoint's run would not be the same run.

    `fingerprint`: that of the run now; `absent`: what the lack of a part stands for in it and in the checkpoint's.
    """
    allowed = HARMLESS | set(BATCH) if _has_same_batch(settings, state, world_size) else HARMLESS
    old, new = ({part: side[part] for part in side.keys() - allowed} for side in (state.fingerprint, fingerprint))
    if harmful := differences(old, new, absent):
        raise UserError(
            f"checkpoint of step {state.step}: {'; '.join(harmful)}: set that back, or give --overwrite to train afresh"
        )


def _has_same_batch(settings: TrainConfig, state: RunState, world_size: int) -> bool:
    return settings.batch_size * settings.gradient_accumulation * world_size == state.global_batch


def _share_batch(settings: TrainConfig, global_batch: int, world_size: int) -> TrainConfig:
    """The same texts per step on another number of ranks, in forward passes of at most `train.batch_size`."""
    share, rest = divmod(global_batch, world_size)
    if rest:
        raise UserError(
            f"the checkpoint's batch of {global_batch} texts cannot be shared by {world_size} ranks alike: "
            f"resume on a number of ranks that divides {global_batch}"
        )
    micro = max(size for size in range(1, min(share, settings.batch_size) + 1) if share % size == 0)
    log.info(
        "train: %d rank(s) share batches of %d texts: batch_size %d, gradient_accumulation %d",
        world_size,
        global_batch,
        micro,
        share // micro,
    )
    return settings.model_copy(update={"batch_size": micro, "gradient_accumulation": share // micro})


def load_state(ranks: Ranks, path: Path) -> RunState:
    """A checkpoint, read by every rank. Collective. Raises UserError where it is damaged or not there."""
    with about(f"checkpoint '{path}'"):
        return ranks.on_every(lambda: _read(path))


def _read(path: Path) -> RunState:
    if not path.is_dir():
        raise UserError(f"train.resume: '{path}' is not a checkpoint directory: give checkpoints/step-NNNNNN, or auto")
    return read_checkpoint(path)
