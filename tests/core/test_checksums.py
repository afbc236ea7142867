"""Checksums beside an artefact find every change to its files."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.core.checksums import SUMS, check_sums, write_sums
from pipeline.core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "data.arrow").write_bytes(bytes(range(256)))
    (folder / "two words.json").write_text("{}")
    (folder / "README.md").write_text("for people")
    write_sums(folder)
    return folder


def test_what_was_written_passes_and_readers_may_edit_the_card(folder: Path) -> None:
    (folder / "README.md").write_text("changed")
    check_sums(folder)
    check_sums(folder / "train")  # no sums there
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=True)


@pytest.mark.parametrize("name", ["train/data.arrow", "two words.json", SUMS])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_every_damage_is_named(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = file.read_bytes()
    if damage == "gone":
        if name == SUMS:
            pytest.skip("artefacts without sums are accepted")
        file.unlink()
    else:
        changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[: len(content) // 2], "empty": b""}
        file.write_bytes(changed[damage])
    with pytest.raises(UserError, match="is not what was written"):
        check_sums(folder)
