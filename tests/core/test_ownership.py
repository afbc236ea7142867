"""Folders of somebody else stay as they are, whatever lies in them; those of older versions are known."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.config import RunConfig, load_config
from pipeline.core.errors import UserError
from pipeline.core.files import temporary_of, write_text
from pipeline.core.ownership import ARTEFACTS, MARK, SECTIONS, check_ours, claim, mark_of
from pipeline.core.run_dir import RunDir
from pipeline.stages.preprocess import preprocess
from tests.support.tiny_run import tiny_config, tiny_run


def tree(folder: Path) -> dict[str, Any]:
    """Everything below a folder: what each file holds, where each link leads."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, a backbone, a config, and a run with data, labels and an adapter."""
    folder = tmp_path_factory.mktemp("made")
    config = tiny_run(folder)
    config.run_dir.write_config(config.to_kept_yaml())
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


def refused(folder: Path, made: Path, capsys: pytest.CaptureFixture[str], command: str = "run") -> str:
    """What `command` says that leaves this folder, as its run.dir, exactly as it was."""
    before = tree(folder)
    assert main([command, "--config", str(made / "config.yaml"), f"run.dir={folder}"]) == 2
    assert tree(folder) == before
    return capsys.readouterr().err.splitlines()[-1]


SOMEBODYS = [
    ["data/train.tsv"],
    ["labels/list.txt"],
    ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
    ["evaluation/results.csv"],
    ["checkpoints/step-1000.ckpt"],
    ["config.yaml"],
    ["thesis.tex", ".chapter.old", ".chapter.tmp"],
    [".git/HEAD"],
    ["logs/server.log"],
    ["data/manifest.json"],
]


@pytest.mark.parametrize("files", SOMEBODYS, ids=lambda files: files[0])
@pytest.mark.parametrize("command", ["run", "preprocess", "evaluate"])
def test_a_folder_that_is_somebodys_is_refused_untouched(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], command: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"mine": 1}')
    said = refused(tmp_path, made, capsys, command)
    first = sorted(Path(name).parts[0] for name in files)[0]
    assert f"run.dir '{tmp_path}' holds '{first}'" in said and "choose a new or an empty folder" in said


@pytest.mark.parametrize("place", ["home", "", "."])
def test_an_unset_run_dir_and_the_current_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    given = str(tmp_path) if place == "home" else f'"{place}"'
    assert main(["run", "--config", str(made / "config.yaml"), f"run.dir={given}"]) == 2
    assert "run.dir" in capsys.readouterr().err.splitlines()[-1] and tree(tmp_path) == before


def test_what_comes_before_the_first_start_is_no_hindrance(tmp_path: Path) -> None:
    """A batch job's log, the lock of a start that failed, an empty folder that links name."""
    (tmp_path / "real" / "logs" / "slurm").mkdir(parents=True)
    (tmp_path / "real" / "logs" / "slurm" / "job-1.log").write_text("")
    (tmp_path / "real" / ".lock").write_text("")
    (tmp_path / "link").symlink_to("real")
    RunDir(tmp_path / "link").create()
    assert json.loads((tmp_path / "real" / MARK).read_text()) == {"directory": "run", "version": 1}
    RunDir(tmp_path / "new" / "deep").create()
    assert check_ours(tmp_path / "new" / "deep", "run")


@pytest.mark.parametrize("name", [*ARTEFACTS, "checkpoints", "config.yaml"])
def test_what_somebody_puts_into_a_run_directory_is_theirs(tmp_path: Path, name: str) -> None:
    run = RunDir(tmp_path)
    run.create()
    if name == "config.yaml":
        run.config_file.write_text("# my recipe\nrun: {dir: x}\n")
    else:
        (tmp_path / name).mkdir()
        run.create()  # an empty folder is nobody's
        (tmp_path / name / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=rf"{name}' (was not written by|is not a config that) this program.*: move it"):
        run.create()
    assert tree(tmp_path) == before


def test_a_damaged_artefact_is_still_ours(made: Path, tmp_path: Path) -> None:
    for file in ("data/manifest.json", "data/SHA256SUMS", "labels/labels.json", "adapter/adapter_config.json"):
        for damage in ("", '{"version": '):
            shutil.copytree(made / "run", tmp_path / "run", dirs_exist_ok=True)
            (tmp_path / "run" / file).write_text(damage)
            RunDir(tmp_path / "run").create()
    (tmp_path / "run" / "config.yaml").write_bytes(b"run: {d\xff")
    RunDir(tmp_path / "run").create()


@pytest.mark.parametrize("kept", ["all", "without config", "config alone"])
def test_a_run_directory_of_an_older_version_is_taken_over(made: Path, tmp_path: Path, kept: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    (run / MARK).unlink()
    config = load_config(made / "config.yaml", [f"run.dir={run}"])
    (run / "config.yaml").write_text(config.to_yaml())
    (run / "notes.txt").write_text("mine")
    if kept == "without config":
        (run / "config.yaml").unlink()
    if kept == "config alone":
        for name in ("data", "labels", "adapter"):
            shutil.rmtree(run / name)
    RunDir(run).create()
    assert check_ours(run, "run") and (run / "notes.txt").read_text() == "mine"


def test_what_cannot_be_written_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for kind, key in (("run", r"run\.dir"), ("comparison", "dir")):
        with pytest.raises(UserError, match=rf"^{key} '.*/file' cannot be written .*: choose another {key}$"):
            claim(tmp_path / "file", kind)  # type: ignore[arg-type]


def test_marks_of_other_kinds_and_versions(tmp_path: Path) -> None:
    claim(tmp_path / "comparison", "comparison")
    with pytest.raises(UserError, match=r"is a comparison directory, not a run directory: choose another folder"):
        RunDir(tmp_path / "comparison").create()
    RunDir(tmp_path / "run").create()
    for mark, words in (({**mark_of("run"), "version": 2}, "layout version 2"), ("half", "is damaged: remove it")):
        write_text(tmp_path / "run" / MARK, json.dumps(mark))
        with pytest.raises(UserError, match=words):
            RunDir(tmp_path / "run").create()


LINKS = ["checkpoints", "adapter", "adapter-final", "evaluation", "config.yaml", ".lock", "logs", "logs/metrics.jsonl"]


@pytest.mark.parametrize("name", LINKS)
def test_a_symbolic_link_in_the_place_of_an_artefact_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copytree(made / "run", tmp_path / "other")
    (tmp_path / "other" / "logs").mkdir()
    for file in ("logs/metrics.jsonl", ".lock"):
        (tmp_path / "other" / file).write_text("precious\n")
    RunDir(tmp_path / "run").create()
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "other" / name)
    elsewhere = tree(tmp_path / "other")
    for options in ([], ["--overwrite"]):
        assert main(["train", "--config", str(made / "config.yaml"), f"run.dir={tmp_path / 'run'}", *options]) == 2
        assert f"{name}' is a symbolic link: put what it names in its place" in capsys.readouterr().err
    assert tree(tmp_path / "other") == elsewhere


def test_linked_data_are_replaced_and_what_they_were_linked_from_stays(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "other")
    config = load_config(made / "config.yaml", [f"run.dir={tmp_path / 'run'}"])
    config.run_dir.create()
    config.run_dir.data.symlink_to(tmp_path / "other" / "data")
    before = tree(tmp_path / "other")
    preprocess(config)
    assert config.run_dir.data.is_symlink(), "they are current"
    preprocess(load_config(made / "config.yaml", [f"run.dir={tmp_path / 'run'}", "data.max_length=32"]))
    assert not config.run_dir.data.is_symlink() and tree(tmp_path / "other") == before
    shutil.rmtree(config.run_dir.data)
    config.run_dir.data.symlink_to(tmp_path / "gone")
    preprocess(config)
    assert config.run_dir.manifest_file.is_file() and not config.run_dir.data.is_symlink()
    config.run_dir.labels.symlink_to(tmp_path)
    with pytest.raises(UserError, match="labels' is a symbolic link"):
        config.run_dir.create()


def test_temporaries_are_known_by_their_whole_name() -> None:
    known = {
        ".ltune-data.x1_y.tmp": "data",
        ".ltune-config.yaml.77.tmp": "config.yaml",
        ".ltune-adapter-final.ab.tmp": "adapter-final",
        ".ltune-adapter.old": "adapter",
    }
    assert {name: temporary_of(name) for name in known} == known
    assert not any(map(temporary_of, [".data.x1y2.tmp", ".adapter.old", "x.tmp", ".ltune-data", ".ltune-.tmp"]))


def test_a_kept_config_has_every_section_and_no_place() -> None:
    assert set(RunConfig.model_fields) >= SECTIONS


def test_the_config_of_a_run_directory_is_about_that_directory(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "copy")
    assert "dir:" not in (tmp_path / "copy" / "config.yaml").read_text()
    assert load_config(tmp_path / "copy" / "config.yaml").run.dir == str(tmp_path / "copy")
    assert load_config(tmp_path / "copy" / "config.yaml", ["run.dir=other"]).run.dir == "other"
    shutil.copy(tmp_path / "copy" / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"'run\.dir' is missing"):
        load_config(tmp_path / "config.yaml")


def test_a_copy_of_an_older_run_directory_says_that_it_is_one(made: Path, tmp_path: Path) -> None:
    for name in ("original", "copy"):
        shutil.copytree(made / "run", tmp_path / name)
        (tmp_path / name / MARK).unlink()
        config = load_config(made / "config.yaml", [f"run.dir={tmp_path / 'original'}"])
        (tmp_path / name / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "original" / "config.yaml").run.dir == str(tmp_path / "original")
    with pytest.raises(UserError, match=r"lies in run directory .*copy', but its run\.dir is .*original': say which"):
        load_config(tmp_path / "copy" / "config.yaml")
    for name in ("original", "copy"):
        chosen = load_config(tmp_path / "copy" / "config.yaml", [f"run.dir={tmp_path / name}"])
        assert chosen.run.dir == str(tmp_path / name)


def test_a_checkpoint_inside_the_run_directory_is_kept_relative_to_it(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, train={"resume": str(tmp_path / "run" / "checkpoints" / "step-000006")})
    assert "resume: checkpoints/step-000006\n" in config.to_kept_yaml()
    elsewhere = tiny_config(tmp_path, train={"resume": str(tmp_path / "other" / "checkpoints" / "step-000006")})
    assert str(tmp_path / "other") in elsewhere.to_kept_yaml()
