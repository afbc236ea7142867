"""The one exception a user may see."""


class UserError(Exception):
    """A fault the user can mend: says what is wrong, where, and what to do, in one line.

    The command line prints the message and exits with status 2; a traceback only with ``--debug``.
    Broken invariants of our own are ``assert``s instead.
    """
