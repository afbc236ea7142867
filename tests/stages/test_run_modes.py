"""Whoever may read a run directory may read all of it: the umask decides, for every artefact.

covers core/files
covers core/run_dir
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.support.tiny_run import tiny_config


@pytest.fixture
def umask() -> Iterator[None]:
    """Another than the usual one."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_every_file_and_folder_of_a_run_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, train={"max_steps": 2, "batch_size": 4, "save_every": 1})
    (tmp_path / "given.yaml").write_text(config.to_yaml())
    run = config.run_dir
    assert main(["run", "--config", str(tmp_path / "given.yaml")]) == 0
    assert main(["report", "--run", str(run.path)]) == 0
    found = [run.path, *run.path.rglob("*")]
    names = {path.name for path in found}
    assert {"adapter.safetensors", "predictions.parquet", "report.html", "metrics.jsonl", "manifest.json"} <= names
    assert any(path.suffix == ".arrow" for path in found) and any(run.checkpoints.rglob("*.safetensors"))
    modes = {str(path.relative_to(run.path)): (path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in found}
    wrong = {name: oct(mode) for name, (is_dir, mode) in modes.items() if mode != (0o750 if is_dir else 0o640)}
    assert wrong == {}
