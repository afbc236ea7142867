"""Requests that are not answered: the status and the line for each."""

from starlette.exceptions import HTTPException

from pipeline.core.escapes import visible
from pipeline.serving.messages import ErrorType

STATUS: dict[ErrorType, int] = {
    "validation": 422,
    "unauthorized": 401,
    "unknown": 404,
    "too_large": 413,
    "too_slow": 408,
    "overloaded": 429,
    "unavailable": 503,
    "backend": 500,
}
GONE = 499
"""The status, in logs and counts alone, of a request whose client has left."""


class Refused(HTTPException):
    """A request that is not answered. Of a kind that FastAPI lets through, also while it reads a body."""

    def __init__(self, kind: ErrorType, line: str) -> None:
        super().__init__(STATUS[kind], line, {"Retry-After": "1"} if kind in ("overloaded", "unavailable") else None)
        self.kind = kind
        self.line = line

    @property
    def body(self) -> dict[str, str]:
        """JSON; `Failure` in messages."""
        line = visible(" ".join(self.line.split()))
        return {"error": line.encode(errors="backslashreplace").decode(), "error_type": self.kind}


class ClientGone(Exception):  # noqa: N818 (the request's state, not a fault of ours)
    """Nobody waits for the answer any more."""
