"""What one check found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """One row of the doctor's table."""

    name: str
    state: State
    found: str
    """What the machine has."""
    advice: str = ""
    """What to do about a warning or a failure."""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, advice: str) -> Check:
    return Check(name, "warning", found, advice)


def failure(name: str, found: str, advice: str) -> Check:
    return Check(name, "failure", found, advice)


def run_checks(checks: Iterable[Callable[[], list[Check]]]) -> list[Check]:
    """All results in order. A check that breaks is a failure of its own: the others still report what they found."""
    results: list[Check] = []
    for check in checks:
        try:
            results += check()
        except Exception as error:
            name = check.__name__.replace("_", " ")
            results.append(failure(name, reason(error), "the check itself broke: report this line"))
    return results


def reason(error: BaseException) -> str:
    """An error in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
