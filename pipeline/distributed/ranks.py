"""The processes that work together, and agreement between them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from pipeline.core.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that share a piece of work, as one of them sees them: what is handed one of these may do
    collectives with them, and with no others."""

    rank: int
    size: int

    @classmethod
    def alone(cls) -> "Ranks":
        """This process by itself, whatever process groups it is in. For the Python API."""
        return cls(rank=0, size=1)

    @classmethod
    def joined(cls) -> "Ranks":
        """All processes of the default process group; this one alone where there is none. For the stages."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls.alone()

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in order. Collective."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_every(self, work: Callable[[], T]) -> T:
        """Runs `work`, which must hold no collective, on every rank; if one fails, all fail. Collective.

        Without this the ranks that went well would wait for the failed one in their next collective.
        Raises UserError (the first rank's message) on every rank; an unexpected exception stays itself where it
        happened.
        """
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others must hear of it
            failure = error
        messages = self.gather(None if failure is None else _message(failure))
        if failure is not None and not isinstance(failure, UserError):
            raise failure
        for rank, message in enumerate(messages):
            if message is not None:
                raise UserError(message if self.size == 1 else f"rank {rank}: {message}")
        return result  # type: ignore[return-value]  # `work` returned it


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
