"""Names that become paths, and paths that users and artefacts name: what may lie where."""

import os
import re
from pathlib import Path, PurePosixPath

LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, of which temporary siblings need some."""

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^{}]*)\})", re.ASCII)


def expanded(path: str) -> str:
    """The path with `~`, `$NAME` and `${NAME}` replaced, as a shell would. Raises ValueError where one means nothing.

    Shells do so only for some words of a command, and nobody does for the values of a YAML file.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name!r} is not set")
        return os.environ[name]

    return _VARIABLE.sub(value, home_expanded(path))


def home_expanded(path: str) -> str:
    """The path with `~` or `~NAME` at its beginning replaced. Raises ValueError where there is no such home."""
    home = os.path.expanduser(path)
    if home.startswith("~"):
        raise ValueError(f"there is no home folder {path.partition('/')[0]!r} (a folder of that name: ./~)")
    return home


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
