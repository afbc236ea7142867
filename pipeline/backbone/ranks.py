"""Agreement between the processes of a run."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from pipeline.errors import UserError

T = TypeVar("T")


def gather_objects(value: T) -> list[T]:
    """`value` of every rank, in order; a list of one where no process group exists."""
    if not dist.is_initialized():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_every_rank(work: Callable[[], T]) -> T:
    """Runs `work`, which must hold no collective, on every rank; if one fails, all fail.

    Without this the ranks that went well would wait for the failed one in their next collective.
    Raises UserError (the first rank's message) on every rank; an unexpected exception stays itself where it happened.
    """
    result, failure = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    messages = gather_objects(None if failure is None else _message(failure))
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise UserError(message if len(messages) == 1 else f"rank {rank}: {message}")
    return result  # type: ignore[return-value]  # `work` returned it


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
