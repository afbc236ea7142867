"""The exceptions a user may see, and exit statuses that launchers may ask for."""

PREEMPTED = 85
"""A signal ended training after a checkpoint: queue the job again."""
RANK_LOST = 86
"""Another rank of the run was killed, hung or failed."""


class UserError(Exception):
    """A fault the user can mend: says what is wrong, where, and what to do, in one line.

    The command line prints the message and exits with status 2; a traceback only with ``--debug``.
    Broken invariants of our own are ``assert``s instead.
    """


class DivergedError(UserError):
    """Training led to numbers that are none: another learning rate may not."""


class Preempted(Exception):  # noqa: N818 (no error: the run goes on where it was when it is started again)
    """A signal ended training after a checkpoint. The command line exits with status 85, "requeue me"."""
