"""What a hostile case is, and the bench on which its inputs are made: copies of one small, finished run."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.tiny_run import tiny_config


class Bench:
    """A folder per case, and files to spoil in it. `base` holds a finished run, its backbone and its tables."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def fifo(self, name: str) -> Path:
        os.mkfifo(self.folder / name)
        return self.folder / name

    def link(self, name: str, target: str | Path) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return path

    def copy(self, name: str) -> Path:
        """Of `run` or `backbone`."""
        return shutil.copytree(self.base / name, self.folder / name, dirs_exist_ok=True)

    def values(self) -> dict[str, Any]:
        """The config of the run in the base, in a directory of its own."""
        values = json.loads((self.base / "config.yaml").read_text())
        return values | {"run": {"dir": str(self.folder / "run")}}

    def config(self, **sections: dict[str, Any]) -> Path:
        values = self.values()
        for name, section in sections.items():
            values[name] = section if "name" in section else values.get(name, {}) | section
        return self.file("config.yaml", json.dumps(values))

    def dry_run(self, *overrides: str, **sections: dict[str, Any]) -> list[str]:
        return ["run", "--dry-run", "--config", str(self.config(**sections)), *overrides]

    def run(self, command: str, *overrides: str, **sections: dict[str, Any]) -> list[str]:
        return [command, "--config", str(self.config(**sections)), *overrides]

    def predict(self, *arguments: str, adapter: Path | None = None, text: str | bytes = "a goal\n") -> list[str]:
        source = self.file("texts.txt", text)
        folder = adapter or self.base / "run" / "adapter"
        return ["predict", "--adapter", str(folder), "--input", str(source), "--device", "cpu", *arguments]


@dataclass(frozen=True)
class Case:
    """An input made to hurt, and what must come of it."""

    name: str
    make: Callable[[Bench], Sequence[str]]
    """Makes the input; gives the arguments of the command line."""
    says: str
    """Pattern of the one line of error; of all that is written where `status` is 0."""
    status: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    streams: str = ""
    """Redirections of a shell: such a case is run in a process of its own, which is not forked."""
    seconds: int = 60
    """Of processor time."""


def prepare_base(base: Path) -> list[str]:
    """Writes tables, backbone and config; gives the command that makes the run."""
    config = tiny_config(
        base, train={"max_steps": 2, "batch_size": 4, "save_every": 1}, logging={"trackers": ["jsonl"]}
    )
    file = base / "config.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    return ["run", "--config", str(file)]


def deep(opening: str, closing: str, depth: int = 100_000) -> str:
    return opening * depth + closing * depth


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    (file.parent / "SHA256SUMS").unlink(missing_ok=True)
