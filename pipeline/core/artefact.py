"""What an artefact was made from, part by part, and whether that is still so: one rule for the artefacts of all stages.

A fingerprint holds every setting and every content that decides what is in the artefact, as text. A part that one of
two fingerprints lacks stands for a value too: a setting for its default, so that a release which adds a key makes
nothing stale. Where the same parts come to mean something else, the artefact's format number is raised.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError
from pipeline.core.settings import defaults

log = logging.getLogger(__name__)
Result = TypeVar("Result")

Fingerprint = Mapping[str, str]
Absent = Mapping[str, str | None]
"""What the lack of a part stands for. None: nobody knows, so the part is not compared. Of other parts: for no value."""

FORMAT = "format"
"""The part that is raised when a meaning changes. Fingerprints without it are of format 1."""
RETIRED: Absent = {}
"""Keys that configs had once, as the fingerprints name them, with their last default: at that they change nothing."""


@dataclass(frozen=True)
class Artefact:
    """What a stage leaves in a folder, and what it may have been made from to be current."""

    folder: Path
    stage: str
    absent: Absent = field(default_factory=dict)
    upgrades: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    """Old format -> a check, for an artefact that differs in its format alone: UserError where it means something else
    today. One without an upgrade is stale."""

    def found(self, read: Callable[[], Result]) -> Result | None:
        """What `read` gives of the folder; None, with a warning, where it is damaged, so that the stage makes it again.

        Damaged is what does not fit its SHA256SUMS, and what `read` refuses with UserError.
        """
        try:
            check_sums(self.folder)
            return read()
        except UserError as error:
            log.warning("%s: made again by this command, since %s", self.stage, error)
            return None

    def is_current(self, made_from: Fingerprint, wanted: Fingerprint) -> bool:
        """Whether it was made from what is wanted; a line says so, or what changed."""
        if changed := self.changes(made_from, wanted):
            log.info("%s: %s is stale (%s), made again", self.stage, self.folder, "; ".join(changed))
            return False
        log.info("%s: %s is current", self.stage, self.folder)
        return True

    def check(self, made_from: Fingerprint, wanted: Fingerprint) -> None:
        """UserError, naming what changed, where it was made from something else: for the stages that read it."""
        if changed := self.changes(made_from, wanted):
            raise UserError(f"'{self.folder}' was made otherwise: {'; '.join(changed)}; run {self.stage} again")

    def changes(self, made_from: Fingerprint, wanted: Fingerprint) -> list[str]:
        """What differs, one phrase per part; a warning names the parts that cannot be compared.

        Raises UserError where an upgrade does.
        """
        warn_of_unknown(str(self.folder), made_from, wanted, self.absent)
        upgrade = self.upgrades.get(format_of(made_from))
        if upgrade is None or format_of(made_from) == format_of(wanted):
            return differences(made_from, wanted, self.absent)
        changed = differences({**made_from, FORMAT: format_of(wanted)}, wanted, self.absent)
        if not changed:
            upgrade()
        return changed


def differences(old: Fingerprint, new: Fingerprint, absent: Absent | None = None) -> list[str]:
    """What differs between two fingerprints, one readable phrase per part."""
    stands_for = {FORMAT: "1", **RETIRED, **(absent or {})}
    phrases = []
    for part in sorted((old.keys() | new.keys()) - _unknown(old, new, stands_for) - _unknown(new, old, stands_for)):
        before, after = (side.get(part, stands_for.get(part)) for side in (old, new))
        if before != after:
            phrases.append(f"{part} was {_short(before)}, now {_short(after)}")
    return phrases


def warn_of_unknown(what: str, old: Fingerprint, new: Fingerprint, absent: Absent) -> None:
    """Warns, once, of the parts that `old`, the fingerprint of `what`, lacks and that nobody knows."""
    for part in sorted(_unknown(old, new, absent)):
        _warn_of(what, part)


def format_of(fingerprint: Fingerprint) -> str:
    return fingerprint.get(FORMAT, "1")


def defaults_of(**sections: type[BaseModel]) -> dict[str, str]:
    """`section.key` -> default, of the keys that have one, as fingerprints hold them."""
    return {
        f"{section}.{name}": str(default)
        for section, model in sections.items()
        for name, default in defaults(model).items()
    }


def within(what: str, parts: Mapping[str, Result]) -> dict[str, Result]:
    """Parts of the fingerprint of an artefact that another one was made from, as `what: part`."""
    return {f"{what}: {part}": value for part, value in parts.items()}


def sha256_of(*parts: str) -> str:
    """Hash of several strings and their lengths: parts that join to the same text differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _unknown(old: Fingerprint, new: Fingerprint, absent: Absent) -> set[str]:
    return {part for part in new.keys() - old.keys() if part in absent and absent[part] is None}


@lru_cache(maxsize=1024)
def _warn_of(what: str, part: str) -> None:
    log.warning(
        "%s: made by an older version, which did not keep '%s' in the fingerprint: that is not compared, so a change "
        "of it would go unnoticed",
        what,
        part,
    )


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return f"'{value}'" if len(value) <= 60 else f"'{value[:12]}…'"
