"""What the check of a loaded backbone found, as it is kept beside what was read with it."""

from dataclasses import dataclass

PASSED = "passed"
CHECK_PART = "check"
"""Of the fingerprint of label states: `check.prompt` and `check.prefix`, where the backbone's family is not tested."""


@dataclass(frozen=True)
class Verdict:
    """Of each kind of injection: `PASSED`, or why it does not work."""

    prompt: str
    prefix: str

    def parts(self) -> dict[str, str]:
        """For the fingerprint of what was read."""
        return {f"{CHECK_PART}.prompt": self.prompt, f"{CHECK_PART}.prefix": self.prefix}
