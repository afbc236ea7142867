"""Adapters on the hub: safetensors, JSON and the model card go there and come from there, and nothing else."""

import re
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipeline.adapter.directory import CARD, CONFIG, adapter_folder, load_adapter
from pipeline.core.checksums import SUMS, check_sums
from pipeline.core.errors import UserError, one_line
from pipeline.core.files import read_json

SETTINGS = "ltune_export.json"
"""In what `export` writes for other programs."""
FILES = ["*.safetensors", "*.json", CARD, SUMS]
FAULTS: tuple[Any, ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
"""What the hub's client raises: errors of its own, and of its HTTP library, which was another one in other versions."""
_NAME = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)
HERE = "path/to/this/folder"
"""How a model card names its folder."""


def push(path: str | Path, repository: str, *, private: bool = False, revision: str | None = None, message: str) -> str:
    """Uploads an adapter directory, that of a run, or what `export` wrote, in one commit; gives the commit's address.

    Older files of these kinds in the repository go. The repository, and the branch `revision`, are made where they are
    not there. The token is that of the hub's client (`hf auth login`, or the variable HF_TOKEN). Raises UserError for a
    folder that is damaged or something else, and where the hub refuses.
    """
    folder = adapter_folder(path)
    if not (folder / SETTINGS).is_file():
        load_adapter(folder)  # whole, and an adapter
    check_sums(folder)
    api = HfApi()
    with TemporaryDirectory() as temporary:
        for file in folder.iterdir():
            if file.is_file() and any(map(file.match, FILES)) and not file.name.startswith("."):
                shutil.copyfile(file, Path(temporary) / file.name)
        card = Path(temporary) / CARD
        card.write_text(card.read_text(encoding="utf-8").replace(HERE, repository), encoding="utf-8")
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=temporary,
                revision=revision,
                commit_message=message,
                delete_patterns=FILES,
            )
        except FAULTS as error:
            raise _failed(f"cannot push to '{repository}'", error) from error
    return str(done.commit_url)


@lru_cache(maxsize=64)
def fetched(name: str) -> Path:
    """The folder in the hub's cache of the adapter `ORG/NAME` or `ORG/NAME@REVISION`; asked once per process.

    UserError where it is not there, or is not an adapter of this program.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    try:
        folder = Path(snapshot_download(match["repository"], revision=match["revision"], allow_patterns=FILES))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"adapter '{name}' is not an adapter directory (there is no such folder), it is not in the hub's cache, "
            "and the hub is not reached: give a finished run, its adapter/ folder, or ORG/NAME@REVISION on the hub"
        ) from error
    except FAULTS as error:
        where = f"there is no folder '{name}', and the hub has no such adapter, or fails"
        raise _failed(where, error) from error
    if not (folder / CONFIG).is_file() or "method" not in read_json(folder / CONFIG):
        raise UserError(f"'{name}' on the hub is not an adapter of this program: its {CONFIG} is missing, or another's")
    return folder


def is_hub_name(path: str | Path) -> bool:
    """Is this `ORG/NAME` or `ORG/NAME@REVISION`, and no folder?"""
    return not Path(path).exists() and _NAME.fullmatch(str(path)) is not None


def _failed(what: str, error: Exception) -> UserError:
    said = one_line(error)
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return UserError(f"{what}: log in with `hf auth login`, or set HF_TOKEN ({said})")
    return UserError(f"{what}: {said}")
