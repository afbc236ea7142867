"""What `pip install .` gives works in an empty folder, far from the clone: presets, embedded texts, report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny

REPOSITORY = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
CONFIG = """
run: {dir: out}
backbone: {name_or_path: tiny, dtype: float32}
data: {train: texts.csv, test: texts.csv, max_length: 64}
method: {name: lt_prefix}
train: {max_steps: 2, batch_size: 4}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the built wheel, and nothing else, was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"  # setuptools writes beside what it builds
    clone.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, clone)
    for name in ("pipeline", "ds_configs"):
        shutil.copytree(REPOSITORY / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(clone)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode and "No module named" in built.stderr:
        pytest.skip(f"pip cannot build here: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    subprocess.run([*PIP, "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    shutil.rmtree(clone)
    return folder / "site"


def test_every_file_of_the_package_is_in_it(installed: Path) -> None:
    def files(package: Path) -> set[str]:
        found = [Path(folder) / name for folder, _, names in os.walk(package, followlinks=True) for name in names]
        return {str(file.relative_to(package)) for file in found if file.suffix != ".pyc"}

    assert files(installed / "pipeline") == files(REPOSITORY / "pipeline")
    assert not any(path.is_symlink() for path in installed.rglob("*"))


def test_it_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny", "llama_gqa")
    (tmp_path / "given.yaml").write_text(CONFIG)
    (tmp_path / "texts.csv").write_text("text,label\n" + "a goal,sport\nshares fell,business\n" * 4)
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}

    def ltune(*arguments: str) -> None:
        command = [sys.executable, str(installed / "bin" / "ltune"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    ltune("run", "--config", "given.yaml")
    ltune("report", "--run", "out")
    assert (tmp_path / "out" / "report.html").is_file()
    place = [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"]
    found = subprocess.run(place, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(installed)), "it was the installed package that ran"
