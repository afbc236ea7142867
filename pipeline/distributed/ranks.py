"""The processes that work together, and agreement between them."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import torch.distributed as dist

from pipeline.core.errors import DivergedError, Preempted, RankFailedError, UserError

T = TypeVar("T")
Packed: TypeAlias = tuple[str, str]
"""An exception on its way to other ranks: the name of its type there, and its message."""

SHARED = (DivergedError, UserError, Preempted)
"""What every rank raises as it is, subclasses first. All else becomes RankFailedError."""
CONTROL_DAYS = 7
"""How long other ranks wait for work that rank 0 does alone."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a piece of work, as one of them sees them: what is handed one of these may do
    collectives with them, and with no others. Start-up makes it, once per process group."""

    rank: int
    size: int
    control_group: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    """Of these ranks, over gloo, with a timeout of days; none is needed for one process."""

    @classmethod
    def alone(cls) -> "Ranks":
        """This process by itself, whatever process groups it is in. For the Python API."""
        return cls(rank=0, size=1)

    @classmethod
    def joined(cls) -> "Ranks":
        """All processes of the default process group, which must exist. Collective: makes the control group."""
        rank, size = dist.get_rank(), dist.get_world_size()
        if size == 1:
            return cls(rank, size)
        return cls(rank, size, dist.new_group(backend="gloo", timeout=timedelta(days=CONTROL_DAYS)))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def turns(self, parts: Sequence[T]) -> list[tuple[T, bool]]:
        """What this rank takes in each turn, and whether it is its own, so that all have as many, as ZeRO-3 needs it.

        The parts go round; a rank that is left without one repeats the last, and drops the result.
        """
        last = len(parts) - 1
        own = range(self.rank, len(parts) + self.rank, self.size)
        return [(parts[min(part, last)], part <= last) for part in own]

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in order. Collective."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 alone, however long it takes, and gives its result to every rank. Collective.

        If it fails, every rank raises the same: UserError, DivergedError or Preempted where `work` did, else
        RankFailedError. On rank 0 the exception of `work` is its cause.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        failure = None
        if self.is_main:
            result, failure = _attempt(work)
            outcome = [result, _packed(failure, 0)]
        dist.broadcast_object_list(outcome, src=0, group=self.control_group)
        result, packed = outcome
        if packed is not None:
            raise _unpacked(packed) from failure
        return result

    def on_every(self, work: Callable[[], T]) -> T:
        """Runs `work`, which must hold no collective, on every rank; if one fails, all fail. Collective.

        Without this the ranks that went well would wait for the failed one in their next collective.
        Every rank raises the same, as `on_main` says: the failure of the first rank that has one, with its number.
        """
        if self.size == 1:
            return work()
        result, failure = _attempt(work)
        failures = self.gather(_packed(failure, self.rank, f"rank {self.rank}: "))
        for packed in failures:
            if packed is not None:
                raise _unpacked(packed) from failure
        return result  # type: ignore[return-value]  # `work` returned it


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # whatever it is, the others must hear of it
        return None, error


def _packed(failure: Exception | None, rank: int, prefix: str = "") -> Packed | None:
    """As two strings: not every exception can be sent, or made again from what is sent."""
    if failure is None:
        return None
    for kind in SHARED:
        if isinstance(failure, kind):
            return kind.__name__, f"{prefix}{failure}"
    said = "".join(traceback.format_exception_only(failure)).strip()
    return RankFailedError.__name__, f"rank {rank} failed: {said}"


def _unpacked(packed: Packed) -> Exception:
    name, message = packed
    kinds = {kind.__name__: kind for kind in (*SHARED, RankFailedError)}
    return kinds[name](message)
