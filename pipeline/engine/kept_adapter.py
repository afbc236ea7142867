"""An adapter that outlives its folder: its files in memory, and on its backbone as soon as it is asked something."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.adapter.directory import CONFIG, Adapter, adapter_folder, load_adapter
from pipeline.core.checksums import read_whole
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir
from pipeline.data.config import OneOrSeveral
from pipeline.engine.loaded_adapter import LoadedAdapter

MAKING = threading.RLock()
"""Held by the thread that trains or loads a model: meanwhile modules that others make would have no memory, and
accelerate's state is that of the training."""


@dataclass
class KeptAdapter:
    """Pickled, it is its files and the choices of `LoadedAdapter.load`; the backbone is not in it."""

    files: Mapping[str, bytes]
    """All of the adapter directory, by name."""
    choices: Mapping[str, Any]
    """Of `LoadedAdapter.load`."""
    labels: tuple[Sequence[str], Mapping[str, OneOrSeveral]] | None = None
    """Names and hypotheses to score in place of those of training."""
    _loaded: LoadedAdapter | None = field(default=None, repr=False, compare=False)

    @classmethod
    def read(cls, path: str | Path, **choices: Any) -> "KeptAdapter":
        """An adapter directory, or a run directory's, loaded. UserError as `LoadedAdapter.load`."""
        others = {name: choice for name, choice in choices.items() if name != "calibrated"}

        def read(folder: Path) -> tuple[Adapter, dict[str, bytes]]:
            return load_adapter(folder, calibrated=choices.get("calibrated", False)), _files(folder)

        with MAKING:
            # Both at once: while the backbone is loaded, another adapter may take the place of this one.
            adapter, files = read_whole(adapter_folder(path), read)
            return cls(files, choices, None, LoadedAdapter.of(adapter, **others))

    @property
    def loaded(self) -> LoadedAdapter:
        """On its backbone. UserError as `LoadedAdapter.load`."""
        if self._loaded is None:
            with MAKING:
                self._loaded = self._loaded or self._load()  # another thread may have loaded it meanwhile
        return self._loaded

    def among(self, names: Sequence[str], texts: Mapping[str, OneOrSeveral]) -> "KeptAdapter":
        """The same, among other labels. UserError as `LoadedAdapter.with_labels`."""
        with MAKING:
            return replace(self, labels=(names, texts), _loaded=self.loaded.with_labels(names, texts))

    def save(self, path: Path) -> None:
        """Writes the adapter directory, whole or not at all.

        UserError where anything but an adapter is there, and for one among other labels than those of its training.
        """
        if self.labels is not None:
            raise UserError(
                "an adapter has the labels of its training: save the classifier that was fitted, and call with_labels "
                "on what from_pretrained loads"
            )
        if path.exists() and not (path / CONFIG).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"'{path}' is not an adapter directory: choose a new folder to save into")
        self._write(path)

    def _load(self) -> LoadedAdapter:
        with TemporaryDirectory() as folder:
            self._write(Path(folder) / "adapter")
            loaded = LoadedAdapter.load(Path(folder) / "adapter", **self.choices)
        return loaded.with_labels(*self.labels) if self.labels else loaded

    def _write(self, path: Path) -> None:
        with atomic_dir(path) as folder:
            for name, content in self.files.items():
                (folder / name).write_bytes(content)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": None}


def _files(folder: Path) -> dict[str, bytes]:
    """What starts with a dot is a file that is being written."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name[0] != "."}
