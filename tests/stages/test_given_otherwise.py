"""Every stage compares what it is given with what the artefacts it reads were made from.

covers data/fingerprint, engine/provenance
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.config import RunConfig, load_config
from pipeline.core.errors import UserError
from pipeline.data.fingerprint import source_identity
from pipeline.stages.evaluate import evaluate
from pipeline.stages.report import report
from pipeline.stages.run import run
from pipeline.stages.train import train
from tests.support.tiny_run import tiny_config

STAGES = ("encode-labels", "train", "evaluate")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and the config file it came from."""
    folder = tmp_path_factory.mktemp("given")
    config = tiny_config(folder, train={"max_steps": 2, "batch_size": 4}, logging={"trackers": ["jsonl"]})
    (folder / "given.yaml").write_text(config.to_yaml())
    assert main(["run", "--config", str(folder / "given.yaml")]) == 0
    return folder


@pytest.fixture
def folder(made: Path) -> Any:
    """The finished run; what a test does to its files is undone."""
    kept = {file: file.read_bytes() for file in made.glob("*.tsv")}
    copy = shutil.copytree(made / "run", made / "kept")
    yield made
    for file, content in kept.items():
        file.write_bytes(content)
    shutil.rmtree(made / "run")
    copy.rename(made / "run")


def state_of(run_dir: Path) -> dict[Path, bytes]:
    """Content of all files but the logs and the lock."""
    files = (file for file in run_dir.rglob("*") if file.is_file() and "logs" not in file.parts)
    return {file: file.read_bytes() for file in files if not file.name.endswith(".lock")}


def stage(folder: Path, command: str, *overrides: str) -> int:
    return main([command, "--config", str(folder / "given.yaml"), *overrides])


def other_file(folder: Path, split: str) -> str:
    path = folder / f"other-{split}.tsv"
    path.write_text((folder / f"{split}.tsv").read_text() + f"another {split} match\tsport\n")
    return str(path)


@pytest.mark.parametrize("command", STAGES)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_another_file_is_refused_and_nothing_names_it(
    folder: Path, command: str, split: str, capsys: pytest.CaptureFixture
) -> None:
    before, path = state_of(folder / "run"), other_file(folder, split)
    assert stage(folder, command, f"data.{split}={path}") == 2
    said = capsys.readouterr().err
    assert f"data.{split} was {folder / split}.tsv, now {path}; run preprocess again" in said
    assert state_of(folder / "run") == before


@pytest.mark.parametrize("command", STAGES)
def test_a_file_that_was_never_there_is_refused(folder: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    before = state_of(folder / "run")
    assert stage(folder, command, "data.train=/nonexistent.tsv") == 2
    assert "data.train: /nonexistent.tsv cannot be read" in capsys.readouterr().err
    assert state_of(folder / "run") == before


def test_a_file_edited_in_place_is_seen_though_size_and_time_are_kept(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    file = folder / "test.tsv"
    found = file.stat()
    file.write_text(file.read_text().replace("shares fell", "shares rose"))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert file.stat().st_size == found.st_size and file.stat().st_mtime_ns == found.st_mtime_ns
    assert stage(folder, "evaluate") == 2
    assert f"{file} has changed; run preprocess again" in capsys.readouterr().err


def test_the_same_content_under_another_name_is_the_same(folder: Path) -> None:
    copy = shutil.copy(folder / "test.tsv", folder / "same.tsv")
    assert stage(folder, "evaluate", f"data.test={copy}") == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.max_length=32", "data.max_length was '64', now '32'"),
        ("data.test_limit=3", "data.test_limit was 'None', now '3'"),
        ("data.text=title", "data.text was 'text', now 'title'"),
        ("data.test=null", "data.test was"),
        ("labels.names=[sport,business,science]", "labels.names was 'null', now"),
    ],
)
def test_data_read_otherwise_are_refused(folder: Path, override: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert stage(folder, "evaluate", override) == 2
    assert said in capsys.readouterr().err


def test_texts_that_are_gone_are_taken_as_preprocess_made_them(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    """Often only the host that preprocessed can see them."""
    (folder / "train.tsv").unlink()
    with caplog.at_level(logging.WARNING, "pipeline"):
        assert stage(folder, "train") == stage(folder, "evaluate") == 0
    assert "train.tsv cannot be read" in caplog.text and "taken as it is" in caplog.text
    assert stage(folder, "preprocess") == 2, "what makes data/ needs them"
    assert "data.train" in capsys.readouterr().err


def test_run_makes_what_changed_anew_in_order(folder: Path) -> None:
    path = other_file(folder, "test")
    assert stage(folder, "run", f"data.test={path}") == 0
    metrics = json.loads((folder / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["test"]["n"] == 10
    assert load_config(folder / "run" / "config.yaml").data.test == path


def test_an_adapter_of_other_texts_or_settings_is_not_evaluated(folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = state_of(folder / "run")
    assert stage(folder, "evaluate", "train.learning_rate=0.5") == 2
    assert "train.learning_rate was '0.001', now '0.5'; run train again" in capsys.readouterr().err
    assert state_of(folder / "run") == before
    path = other_file(folder, "train")
    assert stage(folder, "preprocess", f"data.train={path}") == 0
    assert stage(folder, "evaluate", f"data.train={path}") == 2
    assert "data: data.train was" in capsys.readouterr().err


def test_the_report_shows_no_text_of_a_file_that_changed(folder: Path) -> None:
    file = folder / "test.tsv"
    marked = file.read_text()
    page = folder / "run" / "report.html"
    report(str(folder / "run"))
    assert "the match ended late test" in page.read_text(), "a mistake of two steps of training"
    first, *rows = marked.splitlines()
    file.write_text("\n".join([first, *reversed(rows)]) + "\n")
    report(str(folder / "run"))
    assert "the match ended late test" not in page.read_text()
    assert "test.tsv has changed since preprocess" in page.read_text()


def test_the_report_refuses_figures_of_another_adapter_or_other_data(folder: Path) -> None:
    path = other_file(folder, "test")
    assert stage(folder, "preprocess", f"data.test={path}") == 0
    with pytest.raises(UserError, match=r"evaluation' was made otherwise: data: data\.test was .*; run evaluate again"):
        report(str(folder / "run"))


def test_a_changed_file_in_a_data_set_folder_is_seen(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, train={"max_steps": 1, "batch_size": 4}, logging={"trackers": ["jsonl"]})
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for split in ("train", "validation", "test"):
        text = (tmp_path / f"{split}.tsv").read_text().replace("\t", ",")
        (dataset / f"{split}.csv").write_text(text)
    sources = {split: f"hub:{dataset}:{split}" for split in ("train", "validation", "test")}
    config = config.model_copy(update={"data": config.data.model_copy(update=sources)})
    before = run(config)
    with (dataset / "test.csv").open("a") as file:
        file.write("one more cup,sport\n")
    with pytest.raises(UserError, match=f"hub:{dataset}:test has changed.*run preprocess again"):
        evaluate(config)
    assert run(config)["test"]["n"] == before["test"]["n"] + 1
    with (dataset / "train.csv").open("a") as file:
        file.write("one more season,sport\n")
    with pytest.raises(UserError, match="holds a finished run, and data: data\\.train"):
        run(config)


def test_a_pinned_revision_needs_no_network() -> None:
    source = f"hub:someone/texts@{'0123456789' * 4}:train"
    assert source_identity(source, "train") == source
    with pytest.raises(UserError, match="cannot be"):
        source_identity("hub:someone/texts@main:train", "train")


def test_a_config_that_training_refuses_is_not_kept(folder: Path) -> None:
    config: RunConfig = load_config(folder / "given.yaml")
    given = config.run_dir.config_file.read_text()
    shutil.rmtree(config.run_dir.adapter_final)  # as if it had been killed at its end
    other = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(UserError, match=r"checkpoint of step 2: train\.learning_rate"):
        train(other)
    assert config.run_dir.config_file.read_text() == given
