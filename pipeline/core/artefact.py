"""Fingerprints: what an artefact was made from, part by part."""

import hashlib
from collections.abc import Mapping

ADDED_LATER = frozenset({"weights", "label states: weights"})
"""Parts that fingerprints of older versions lack. Their lack makes nothing stale; the other parts are compared."""


def sha256_of(*parts: str) -> str:
    """Hash of several strings, told apart by their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, one readable phrase per part."""
    phrases = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before != after and not (before is None and key in ADDED_LATER):
            phrases.append(f"{key} was {_short(before)}, now {_short(after)}")
    return phrases


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return f"'{value}'" if len(value) <= 60 else f"'{value[:12]}…'"
