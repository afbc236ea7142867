"""Runs of older versions stay current in all stages, and what changed is named part by part.

covers core/artefact, training/provenance
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import create_model

from pipeline.adapter.directory import adapter_fingerprint
from pipeline.adapter.label_states import LabelStates
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.core.artefact import differences, sha256_of, within
from pipeline.core.checksums import write_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.run_dir import RunDir
from pipeline.data import fingerprint as data_module
from pipeline.data.config import DataConfig
from pipeline.data.fingerprint import data_absent
from pipeline.engine import provenance as evaluation_module
from pipeline.engine.provenance import evaluated_from
from pipeline.stages import encode_labels as labels_module
from pipeline.stages.report import report
from pipeline.training import provenance as training_module
from pipeline.training.config import TrainConfig
from pipeline.training.provenance import training_absent, training_fingerprint
from tests.support.tiny_run import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
FROZEN = read_json(Path(__file__).parent / "version_0_1.json")
"""The fingerprints of the quickstart as version 0.1 (0e54d2f) made it."""
OLD_WAYS = ("method.head=label_aware", "method.start=random", "method.pooling=scores")
"""What label tuning did by default in version 0.1."""
TRAIN = {"max_steps": 2, "batch_size": 4}
STAGES = ("preprocess", "encode-labels", "train", "evaluate", "run")


def as_version_0_1(run: RunDir) -> None:
    """Gives the files of a run the form that version 0.1 wrote."""
    manifest = read_json(run.manifest_file)
    parts = {part: value for part, value in manifest["fingerprint"].items() if part != "format"}
    del manifest["special_tokens"], manifest["sources"]
    rewrite(run.manifest_file, manifest | {"version": 1, "fingerprint": parts})
    calibration = read_json(run.adapter / "calibration.json")
    write_json(run.adapter / "calibration.json", {key: calibration[key] for key in ("temperature", "texts")})
    for folder in (run.labels, run.adapter, run.adapter_final):
        states = LabelStates.load(folder)
        for part in ("format", "weights"):
            del states.fingerprint[part]
        (folder / "SHA256SUMS").unlink()
        states.save(folder)
        write_sums(folder)
    summary = read_json(run.summary_file)
    later = ("format", "data: format", "label states: format", "label states: weights")
    summary["fingerprint"] = {part: value for part, value in summary["fingerprint"].items() if part not in later}
    rewrite(run.summary_file, summary)
    found = {
        "adapter": adapter_fingerprint(run.adapter),
        "data": sha256_of(*(f"{part}={value}" for part, value in sorted(parts.items()))),
        "evaluate.splits": "validation, test",
        "figures": "with temperature scaling",
    }
    rewrite(run.evaluation_fingerprint_file, found)


def rewrite(file: Path, value: dict[str, Any]) -> None:
    write_json(file, value)
    write_sums(file.parent)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `new` and `old`, and the config file they came from."""
    folder = tmp_path_factory.mktemp("older")
    config = tiny_config(
        folder, method={"start": "random"}, train={"max_steps": 2, "batch_size": 4}, logging={"trackers": ["jsonl"]}
    )
    (folder / "given.yaml").write_text(config.to_yaml())
    assert main(["run", "--config", str(folder / "given.yaml"), f"run.dir={folder / 'new'}"]) == 0
    shutil.copytree(folder / "new", folder / "old")
    as_version_0_1(RunDir(folder / "old"))
    return folder


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    """What a test does to the runs is undone."""
    for run in ("new", "old"):
        shutil.copytree(made / run, made / f"{run}-kept")
    yield made
    for run in ("new", "old"):
        shutil.rmtree(made / run)
        (made / f"{run}-kept").rename(made / run)


def stage(folder: Path, command: str, run: str, *overrides: str) -> int:
    return main([command, "--config", str(folder / "given.yaml"), f"run.dir={folder / run}", *overrides])


def times_of(run: RunDir) -> dict[Path, int]:
    """Of all files but those that an upgrade of data/ writes."""
    folders = (run.labels, run.adapter, run.adapter_final, run.evaluation, run.checkpoints, run.data)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files if file.name != "SHA256SUMS" and file != run.manifest_file}


@pytest.mark.parametrize("run", ["new", "old"])
@pytest.mark.parametrize("command", STAGES)
def test_a_run_is_current_in_each_stage_alone(
    folder: Path, run: str, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = times_of(RunDir(folder / run))
    with caplog.at_level("INFO", "pipeline"):
        assert stage(folder, command, run) == 0
    assert times_of(RunDir(folder / run)) == before and "is current" in caplog.text
    assert "stale" not in caplog.text and "made again" not in caplog.text
    report(str(folder / run))


def test_data_of_version_0_1_are_of_todays_format_once_they_are_checked(folder: Path) -> None:
    assert stage(folder, "preprocess", "old") == 0
    manifest = read_json(folder / "old" / "data" / "manifest.json")
    assert manifest["version"] == 2 and manifest["special_tokens"] == {"train": 0, "validation": 0, "test": 0}
    assert stage(folder, "evaluate", "old") == 0


@pytest.mark.parametrize("command", ["encode-labels", "train", "evaluate"])
def test_a_stage_alone_refuses_older_data_whose_labels_were_read_wrongly(
    folder: Path, command: str, capsys: pytest.CaptureFixture
) -> None:
    file = folder / "old" / "data" / "manifest.json"
    manifest = read_json(file)
    rewrite(file, manifest | {"labels": manifest["labels"][::-1]})
    assert stage(folder, command, "old") == 2
    assert "by an older version that read labels wrongly" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["new", "old"])
def test_what_changed_is_named_part_by_part(
    folder: Path, run: str, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    before = times_of(RunDir(folder / run))
    assert stage(folder, "train", run, "train.learning_rate=0.5", "method.shortlist=2", "run.seed=3") == 2
    said = capsys.readouterr().err
    for phrase in ("method.shortlist was ", "run.seed was '0', now '3'; train.learning_rate was '0.001', now '0.5'"):
        assert phrase in said
    assert "holds a finished run" in said and times_of(RunDir(folder / run)) == before
    with caplog.at_level("INFO", "pipeline"):
        assert stage(folder, "evaluate", run, "evaluate.splits=[test]") == 0
    assert "is stale (evaluate.splits was 'validation, test', now 'test')" in caplog.text


def adding(model: type[Any], monkeypatch: pytest.MonkeyPatch, *modules: Any) -> type[Any]:
    """The config class of a later release, in the place of today's."""
    later = create_model(model.__name__, __base__=model, added=(int, 7))
    for module in modules:
        monkeypatch.setattr(module, model.__name__, later)
    return later


def test_a_key_that_is_added_makes_nothing_stale(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = load_config(made / "given.yaml"), RunDir(made / "new")
    manifest, labels = read_json(run.manifest_file), LabelStates.load(run.labels)
    train = adding(TrainConfig, monkeypatch, training_module)(**config.train.model_dump())
    adding(DataConfig, monkeypatch, data_module)
    manifest["fingerprint"]["data.added"] = "7"
    sections = (config.method, train, config.backbone, config.run.seed)
    wanted = training_fingerprint(*sections, manifest, labels)
    assert wanted["train.added"] == wanted["data: data.added"] == "7"
    before = read_json(run.summary_file)["fingerprint"]
    assert "train.added" not in before and differences(before, wanted, training_absent(config.method)) == []
    assert differences(before, wanted | {"train.added": "8"}, training_absent(config.method)) == [
        "train.added was '7', now '8'"
    ]
    wanted = evaluation_module.evaluation_fingerprint(run, manifest, ["validation", "test"])
    found = evaluated_from(run, manifest)
    assert wanted["data: data.added"] == "7" and "data: data.added" not in found
    assert evaluation_module.evaluation_artefact(run).changes(found, wanted) == []
    assert differences({"data.text": "text"}, {"data.text": "text", "data.added": "7"}, data_absent()) == []


def of_format_3(parts: dict[str, str]) -> dict[str, str]:
    return within("data", {**parts, "format": "3"})


FORMATS = [
    (data_module, "DATA_FORMAT", 3, "train", "format was '2', now '3'; run preprocess again"),
    (labels_module, "LABEL_FORMAT", "2", "train", "format was '1', now '2'; run encode-labels again"),
    (training_module, "TRAINING_FORMAT", "2", "train", "finished run, and format was '1', now '2': set that back"),
    (training_module, "TRAINING_FORMAT", "2", "evaluate", "trained otherwise: format was '1', now '2'; run train"),
    (training_module, "parts_of_data", of_format_3, "train", "finished run, and data: format was '2', now '3'"),
]


@pytest.mark.parametrize(("module", "name", "value", "command", "said"), FORMATS)
def test_a_format_that_is_raised_is_refused_by_name_and_what_is_finished_is_kept(
    folder: Path,
    module: Any,
    name: str,
    value: Any,
    command: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    before = times_of(RunDir(folder / "new"))
    monkeypatch.setattr(module, name, value)
    assert stage(folder, command, "new") == 2
    assert said in capsys.readouterr().err and times_of(RunDir(folder / "new")) == before


def test_the_config_that_an_older_run_keeps_means_what_it_meant(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = folder / "new" / "config.yaml"
    lines = [line for line in kept.read_text().splitlines() if line.strip() != "start: random"]
    assert len(lines) < len(kept.read_text().splitlines())
    kept.write_text("\n".join(lines))
    with caplog.at_level("INFO", "pipeline"):
        assert main(["run", "--config", str(kept)]) == 0
    assert "is current" in caplog.text and "made again" not in caplog.text


def test_an_evaluation_of_an_older_format_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = folder / "old" / "evaluation" / "fingerprint.json"
    found = read_json(file)
    del found["figures"]
    rewrite(file, found)
    with caplog.at_level("INFO", "pipeline"):
        assert stage(folder, "evaluate", "old") == 0
    assert "is stale (format was '1', now '2'), made again" in caplog.text


def test_the_fingerprints_of_the_quickstart_of_version_0_1_are_current() -> None:
    was = ("method.judge=probe", "train.max_steps=60", "train.eval_every=30", "train.learning_rate=3.0e-3")
    config = load_config(REPOSITORY / "launch" / "recipes" / "quickstart.yaml", (*was, *OLD_WAYS))
    manifest = FROZEN["manifest"]
    states, mask = torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool)
    labels = LabelStates(["a", "b"], ["a", "b"], states, mask, FROZEN["labels"] | {"format": "1", "weights": "abc"})
    sections = (config.method, config.train, config.backbone, config.run.seed)
    wanted = training_fingerprint(*sections, manifest, labels)
    assert differences(FROZEN["training"], wanted, training_absent(config.method)) == []
    other = training_fingerprint(
        config.method, config.train.model_copy(update={"epochs": 4}), *sections[2:], manifest, labels
    )
    assert differences(FROZEN["training"], other, training_absent(config.method)) == ["train.epochs was '3', now '4'"]


def test_the_evaluation_of_the_quickstart_of_version_0_1_is_current(tmp_path: Path) -> None:
    run, manifest = RunDir(tmp_path), FROZEN["manifest"]
    run.evaluation.mkdir()
    run.adapter.mkdir()
    run.evaluation_fingerprint_file.write_text(json.dumps(FROZEN["evaluation"]))
    wanted = evaluation_module.evaluation_fingerprint(run, manifest, ["validation", "test"])
    wanted["adapter"] = FROZEN["evaluation"]["adapter"]
    artefact = evaluation_module.evaluation_artefact(run)
    assert artefact.changes(evaluated_from(run, manifest), wanted) == []
    manifest = manifest | {"fingerprint": manifest["fingerprint"] | {"data.test": "other texts"}}
    assert "data was" in artefact.changes(evaluated_from(run, manifest), wanted)[0]
    with pytest.raises(UserError, match="run evaluate again"):
        artefact.check(evaluated_from(run, manifest), wanted)
