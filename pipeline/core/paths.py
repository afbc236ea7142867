"""Names that become paths, and paths that artefacts name: what may lie where."""

from pathlib import Path, PurePosixPath

LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, of which temporary siblings need some."""


def is_plain_name(name: object) -> bool:
    """Whether it names one file or folder, in at most 200 bytes: no separator, leading dot or invisible character."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and name == name.strip()
        and not name.startswith(".")
        and not set("/\\") & set(name)
        and 0 < len(name.encode()) <= LONGEST_NAME
    )


def inside(folder: Path, name: str) -> Path:
    """The file `name` (`a/b` too) below a folder. Raises ValueError for a name that leads out of it.

    By name alone: links are followed, since the hub's cache keeps the files of a model behind links.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"{name!r} leads out of the folder")
    return folder / path
