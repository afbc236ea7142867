"""Weights & Biases offline and MLflow with files, for real: project, name, config, and one run that is resumed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.core.errors import Preempted, UserError
from pipeline.core.settings import flat
from pipeline.engine.startup import start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from pipeline.training import trackers
from pipeline.training.trackers import Trackers
from tests.support.tiny_run import tiny_config


def whole(config: RunConfig) -> dict[str, Any]:
    return flat(config.model_dump(mode="json"))


def trained_in_two_parts(folder: Path, tracker: str, monkeypatch: pytest.MonkeyPatch, **names: str) -> Any:
    """A run of 6 steps, stopped after 3; its config."""
    config = tiny_config(
        folder,
        train={"max_steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 3},
        logging={"trackers": ["jsonl", tracker], **names},
    )
    preprocess(config)
    encode_labels(config)
    stops = iter([None, None, None, "SIGTERM"])
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.preemption.Preemption.requested", lambda *_: next(stops, None))
        with pytest.raises(Preempted):
            train(config)
    before = json.loads(config.run_dir.trackers_file.read_text())
    assert train(config)["steps"] == 6
    assert json.loads(config.run_dir.trackers_file.read_text()) == before
    return config


def wandb_records(folder: Path) -> list[Any]:
    """What offline runs have written, in order of time."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    return [Record.FromString(data) for file in files for data in leveldb_log(file.read_bytes()[7:], 7)]


def leveldb_log(content: bytes, place: int) -> Iterator[bytes]:
    """The records of LevelDB's log format: parts of at most a block, each with checksum, length and kind before it."""
    block, record = 32768, b""
    rest = memoryview(content)
    while len(rest) > 7:
        left = block - place % block
        if left < 7:
            rest, place = rest[left:], place + left
            continue
        length, kind = int.from_bytes(rest[4:6], "little"), rest[6]
        record += bytes(rest[7 : 7 + length])
        rest, place = rest[7 + length :], place + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install .[trackers]")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_PROJECT": "another"}.items():
        monkeypatch.setenv(name, value)
    config = trained_in_two_parts(tmp_path, "wandb", monkeypatch, project="news", name="first try")
    records = wandb_records(config.run_dir.logs)
    runs = [record.run for record in records if record.HasField("run")]
    [kept] = json.loads(config.run_dir.trackers_file.read_text()).values()
    assert {run.run_id for run in runs} == {kept} and len(runs) >= 2, "one run, in two parts"
    assert {(run.project, run.display_name) for run in runs} == {("news", "first try")}
    updates = [u for r in records for u in (*r.config.update, *r.run.config.update)]
    told = {update.key or ".".join(update.nested_key): json.loads(update.value_json) for update in updates}
    assert {key: told[key] for key in whole(config)} == whole(config)
    items = [{item.key or item.nested_key[0]: item.value_json for item in r.history.item} for r in records]
    assert [int(item["_step"]) for item in items if "loss" in item] == [1, 2, 3, 4, 5, 6]


def test_mlflow_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install .[trackers]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    config = trained_in_two_parts(tmp_path, "mlflow", monkeypatch)
    [experiment] = [each for each in mlflow.search_experiments() if each.name != "Default"]
    [run] = mlflow.search_runs([experiment.experiment_id], output_format="list")
    assert (experiment.name, run.info.run_name, run.info.status) == ("l-tuning", "run", "FINISHED")
    assert json.loads(config.run_dir.trackers_file.read_text()) == {"mlflow": run.info.run_id}
    assert run.data.params == {key: str(value) for key, value in whole(config).items()}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]


class Gone:
    """A tracker whose server is gone."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.calls = failing, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> None:
            self.calls.append(name)
            if name in self.failing:
                raise ConnectionError("no such host")

        return call


def test_a_tracker_that_is_gone_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, logging={"trackers": ["jsonl", "tensorboard", "wandb"]})
    start(tiny_config(tmp_path))
    bad, good = Gone("log"), Gone("finish")
    monkeypatch.setattr(trackers, "_MAKE", {"wandb": lambda *_: bad, "tensorboard": lambda *_: good})
    monkeypatch.setattr(trackers, "_ID", {"wandb": lambda _: "abc"})
    found = Trackers(config.logging, config.run_dir, {}, 0)
    with caplog.at_level(logging.WARNING):
        found.log({"loss": 1.0}, 1)
        found.log({"loss": 0.5}, 2)
        found.close()
    assert bad.calls == ["start", "store_init_configuration", "log"] and good.calls == ["start", "log", "log", "finish"]
    assert "wandb takes no more figures (no such host)" in caplog.text
    monkeypatch.setattr(trackers, "_MAKE", {"wandb": lambda *_: Gone("start"), "tensorboard": lambda *_: good})
    with pytest.raises(UserError, match=r"^logging\.trackers: wandb does not start: no such host$"):
        Trackers(config.logging, config.run_dir, {}, 0)


def test_tensorboard_stays_where_it_was(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, train={"max_steps": 2}, logging={"trackers": ["tensorboard"], "project": "news"})
    preprocess(config)
    encode_labels(config)
    train(config)
    assert list((config.run_dir.logs / "tensorboard").glob("events.out.tfevents.*"))
    assert not config.run_dir.trackers_file.exists()
