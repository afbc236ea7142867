"""What tokenized texts are made from: the content of each source, and the settings by which it is read."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, load_dataset_builder
from datasets.exceptions import DatasetsError

from pipeline.core.artefact import FORMAT, Absent, Artefact, defaults_of, sha256_of, within
from pipeline.core.bounds import check_regular
from pipeline.core.checksums import sha256_of_file
from pipeline.core.errors import UserError, one_line
from pipeline.data.config import SPLITS, UNLABELLED, DataConfig, LabelsConfig
from pipeline.data.hub import hub_arguments
from pipeline.data.sources import fetch_hint, split_file
from pipeline.data.streams import Source

DATA_FORMAT = 2
"""Of data/, the manifest's `version`. In 1, ids were not always read by the names of their own file, nor names by
`label_name`, and nobody counted the rows with special tokens."""
READING = ("text", "text_pair", "label", "quoting")
"""Keys of `data` that say how a source is read."""
WORDS = ("template", "chat")
"""Keys of `data` that put words around a text. The chat template itself is part of the tokenizer's fingerprint."""

_COMMIT = re.compile("[0-9a-f]{40}")


def sources_of(data: DataConfig) -> dict[str, str]:
    """Split -> its source, for the splits that the config has, and the unlabelled texts."""
    return {split: source for split in (*SPLITS, UNLABELLED) if (source := getattr(data, split)) is not None}


def place_of(source: str) -> str:
    """The name of a source, wherever the program is started."""
    is_file = source != "embedded" and not source.startswith("hub:")
    return str(Path(source).absolute()) if is_file else source


def source_identity(source: str, split: str) -> str:
    """Hash of a source's content: of a file, of what a data set folder has for the split; the commit of a hub data set.

    A file is read once in a process, unless it changes. Raises UserError where the source cannot be read.
    """
    file = split_file(source, split)
    try:
        if file is not None:
            kind = "".join(file.suffixes[-2:]) if Source(str(file)).is_gzip else file.suffix
            return f"{_content_hash(file)}, {kind.lower()}, {file.stat().st_size} bytes"
        folder = Path(hub_arguments(source)["path"] or "")
        return f"{source}, {_folder_hash(source, folder)}" if folder.is_dir() else _hub_identity(source)
    except OSError as error:
        hint = fetch_hint(file)
        raise UserError(f"data.{split}: {file or source} cannot be read ({error.strerror or error}){hint}") from error


def made_from(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of data/ with this manifest."""
    return {**manifest["fingerprint"], FORMAT: str(manifest["version"])}


def data_absent() -> Absent:
    """What the lack of a part stands for in the fingerprint of data/."""
    return defaults_of(data=DataConfig, labels=LabelsConfig)


def parts_of_data(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """The fingerprint of data/, which is current, within that of an artefact made from it."""
    return within("data", {**fingerprint, FORMAT: str(DATA_FORMAT)})


def parts_of_data_absent() -> Absent:
    """What the lack of one of them stands for.

    Fingerprints without the format are of programs that took data/ of format 2, or of 1 that was seen to be alike.
    """
    return within("data", {**data_absent(), FORMAT: "2"})


def data_artefact(folder: Path, upgrade: Callable[[], None]) -> Artefact:
    """data/; `upgrade` is from format 1: see `check_labels_of_format_1`."""
    return Artefact(folder, "preprocess", data_absent(), {"1": upgrade})


def data_fingerprint(
    data: DataConfig, names: Sequence[str] | None, seed: int, tokenizer: str, identities: Mapping[str, str]
) -> dict[str, str]:
    """Everything that data/ depends on, part by part.

    `names`: labels.names; `tokenizer`: its fingerprint; `identities`: split -> `source_identity`.
    """
    return {
        FORMAT: str(DATA_FORMAT),
        **{f"data.{split}": identity for split, identity in identities.items()},
        **{f"data.{key}": str(getattr(data, key)) for key in (*READING, *WORDS, "max_length", "split", "on_error")},
        **{f"data.{key}": _draw(getattr(data, key), seed) for key in ("train_limit", "train_per_label")},
        **{f"data.{key}": str(getattr(data, key)) for key in ("validation_limit", "test_limit")},
        "labels.names": json.dumps(names, ensure_ascii=False),
        "tokenizer": tokenizer,
    }


def _draw(count: int | None, seed: int) -> str:
    """Fingerprint of a seeded subset: its size and the seed."""
    return "None" if count is None else f"{count} rows by seed {seed}"


def _content_hash(file: Path) -> str:
    check_regular(file)
    found = file.stat()
    return _hash_of_version(file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=4096)
def _hash_of_version(file: Path, *version: int) -> str:
    """`version` tells a changed file from the one that was read: nobody can set its last part, the time of change."""
    return sha256_of_file(file)


def _folder_hash(source: str, folder: Path) -> str:
    """All files of a folder, but for the texts of other splits: a test file may come when training is over."""
    arguments = hub_arguments(source)
    splits = _builder(source, str(folder), arguments["name"]).config.data_files or {}
    mine = (arguments["split"] or "").partition("[")[0]
    others = {Path(file).resolve() for split, files in splits.items() if split != mine for file in files}
    others -= {Path(file).resolve() for file in splits.get(mine, ())}
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.resolve() not in others)
    return sha256_of(*(part for file in files for part in (str(file.relative_to(folder)), _content_hash(file))))


@lru_cache(maxsize=256)
def _hub_identity(source: str) -> str:
    """A branch moves, so that its name is not enough."""
    arguments = hub_arguments(source)
    if _COMMIT.fullmatch(arguments["revision"] or ""):
        return source
    builder = _builder(source, str(arguments["path"]), arguments["name"], arguments["revision"])
    return f"{source} at {builder.hash}"


def _builder(source: str, path: str, name: str | None, revision: str | None = None) -> DatasetBuilder:
    try:
        return load_dataset_builder(path, name, revision=revision)
    except (ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: a folder with a script
        raise UserError(f"{source}: the data set cannot be loaded: {one_line(error)}") from error
