"""A folder of parts: whose it is, what is finished, and when the manifest comes."""

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.parts import Parts

JOB = {"adapter": "abc", "rows": "2"}


def write(parts: Parts, index: int) -> None:
    def content(file: Path) -> None:
        file.write_text(f"{index}\n")

    parts.write(index, 2, 0, f"rows {index}", content)


def test_the_manifest_comes_with_the_last_part(tmp_path: Path) -> None:
    parts = Parts.claimed(tmp_path / "out", JOB, ".txt")
    write(parts, 1)
    assert parts.has(1, "rows 1") and not parts.has(0, "rows 0")
    assert not parts.finish(2) and not (parts.folder / "manifest.json").exists()
    (parts.folder / ".ltune-part-00000.txt.7_ab.tmp").write_text("half")  # of a killed writer
    write(Parts.claimed(tmp_path / "out", JOB, ".txt"), 0)
    assert parts.finish(2)
    manifest = read_json(parts.folder / "manifest.json")
    assert [part["file"] for part in manifest["parts"]] == ["part-00000.txt", "part-00001.txt"]
    assert manifest["rows"] == 4 and manifest["job"] == JOB
    assert sorted(file.name for file in parts.folder.iterdir()) == [
        "job.json",
        "ltune.json",
        "manifest.json",
        "part-00000.txt",
        "part-00001.txt",
        "records",
    ]


def test_another_job_is_refused_also_where_both_began_at_once(tmp_path: Path) -> None:
    first = Parts.claimed(tmp_path / "out", JOB, ".txt")
    with pytest.raises(UserError, match="parts of another job: rows was '2', now '3'"):
        Parts.claimed(tmp_path / "out", JOB | {"rows": "3"}, ".txt")
    write(first, 0)
    with pytest.raises(UserError, match="is of another job"):
        Parts(tmp_path / "out", JOB | {"rows": "3"}, ".txt").has(0, "rows 0")


def test_a_part_of_other_rows_or_without_its_file_is_known(tmp_path: Path) -> None:
    parts = Parts.claimed(tmp_path / "out", JOB, ".txt")
    write(parts, 0)
    with pytest.raises(UserError, match="made from other rows"):
        parts.has(0, "other")
    with pytest.raises(UserError, match="more parts than the input"):
        parts.finish(0)
    (parts.folder / "part-00000.txt").unlink()
    assert not parts.has(0, "rows 0") and not parts.finish(1)
    (parts.folder / "records" / "part-00000.json").write_text('{"file": 3}')
    with pytest.raises(UserError, match="is damaged"):
        parts.has(0, "rows 0")
