"""The exceptions a user may see, and exit statuses that launchers may ask for."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

PREEMPTED = 85
"""A signal ended training after a checkpoint: queue the job again."""
RANK_LOST = 86
"""Another rank of the run was killed, hung or failed."""
SHOWN = 3
"""Faults, rows or names given in a message; the rest are counted."""


class UserError(Exception):
    """A fault the user can mend: says what is wrong, where, and what to do, in one line.

    The command line prints the message and exits with status 2; a traceback only with ``--debug``.
    Broken invariants of our own are ``assert``s instead.
    """


class DivergedError(UserError):
    """Loss or scores became NaN or infinite; try another learning rate."""


class PassTooLargeError(UserError):
    """There was no memory for a forward pass of so many tokens, padding counted."""

    def __init__(self, key: str, tokens: int, texts: int, *, can_shrink: bool) -> None:
        """`key`: the config key that bounds such passes; `texts`: how many there were in it."""
        self.key, self.limit, self.can_shrink = key, max(1, tokens // 2), can_shrink
        advice = f"set {key}={self.limit}" if self.can_shrink else "see docs/troubleshooting.md, Out of memory"
        super().__init__(f"out of memory in a pass of {texts} text(s), {tokens:,} tokens with their labels: {advice}")


class Preempted(Exception):  # noqa: N818 (no error: the run goes on where it was when it is started again)
    """A signal ended training after a checkpoint. The command line exits with status 85, "requeue me"."""


class RankFailedError(Exception):
    """A rank failed unexpectedly, so all of them do; the message names the rank and its exception.

    The command line exits with status 1: the fault is the program's, not the user's.
    """


@contextmanager
def about(what: str) -> Iterator[None]:
    """Notes on an unexpected error what it is about, such as "data.train 'train.csv'". A UserError says so itself."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(what)
        raise


def one_line(error: BaseException) -> str:
    """All that an error says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def some(items: Sequence[str], count: int | None = None) -> str:
    """The first few items, and how many more there are of `count` in all (default: as many as items)."""
    more = (len(items) if count is None else count) - SHOWN
    return "; ".join(items[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """` (nearest: 'x')` where a known name is close, letter case aside, else nothing."""
    by_form = {other.casefold(): other for other in known}
    matches = difflib.get_close_matches(name.casefold(), by_form, n=1, cutoff=0.5)
    return f" (nearest: {by_form[matches[0]]!r})" if matches else ""
