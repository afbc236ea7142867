"""Devices that a test may write to: were the program at fault, root would lose the machine's own."""

import os
import stat
from pathlib import Path

import pytest


def device(folder: Path, name: str) -> Path:
    """A node of our own in `folder` that is what /dev/NAME is; /dev/NAME itself for those who could not replace it."""
    original = Path("/dev") / name
    if os.geteuid() != 0:
        return original
    path = folder / name
    os.mknod(path, 0o666 | stat.S_IFCHR, original.stat().st_rdev)
    if not os.access(path, os.W_OK):
        pytest.skip(f"devices do not work in {folder}")
    return path
