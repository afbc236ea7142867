"""Self-training: sessions that are trainings of their own, the best of which is kept; one rank, two, and interrupted.

covers stages/self_training, stages/single_training, engine/scorer
"""

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from pipeline.adapter.directory import load_adapter
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.data.config import UNLABELLED
from pipeline.data.splits import load_split
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.preprocess import preprocess
from pipeline.stages.run import run
from pipeline.stages.self_training import best_session
from pipeline.stages.train import train
from tests.support.processes import launch, run_script
from tests.support.self_trained import UNREAD, self_training_config
from tests.support.tiny_run import tiny_config

PROBE = {"name": "probe", "prior": "never"}
PROMPT = {"name": "lt_prompt", "head": "label_aware"}


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_adapter(folder).method_state


def session(config: RunConfig, number: int, adapter: str = "adapter-final") -> dict[str, torch.Tensor]:
    return state_of(config.run_dir.session(number).path / adapter)


@pytest.mark.parametrize("method", [PROBE, PROMPT], ids=["probe", "prompt"])
def test_the_first_session_is_supervised_training_bit_for_bit(
    tmp_path: Path, method: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """And so is a run without sessions; the best session is the run's, and evaluated."""
    caplog.set_level("INFO", "pipeline")
    config = self_training_config(tmp_path, method=method)
    metrics = run(config)
    settings = config.train.model_dump() | {"self_training": 0}
    plain = tiny_config(tmp_path, method=method, train=settings, run={"dir": str(tmp_path / "plain")})
    run(plain)
    for adapter in ("adapter", "adapter-final"):
        expected = state_of(plain.run_dir.path / adapter)
        assert all(torch.equal(value, expected[name]) for name, value in session(config, 0, adapter).items())
    summary = read_json(config.run_dir.summary_file)
    kept = session(config, summary["session"], "adapter")
    assert all(torch.equal(value, kept[name]) for name, value in state_of(config.run_dir.adapter).items())
    best = summary["sessions"][summary["session"]]
    assert metrics["validation"]["accuracy"] == best["accuracy"] == max(one["accuracy"] for one in summary["sessions"])
    assert "are not used" not in caplog.text
    # A run that does not use the texts says so, and is current, whatever they are.
    unused = config.model_copy(update={"run": plain.run, "train": plain.train})
    preprocess(unused)
    assert train(unused) == read_json(plain.run_dir.summary_file)
    assert "train: the texts of data.unlabelled are not used: train.self_training is 0" in caplog.text


def labelled_by(teacher: Path, file: Path, config: RunConfig) -> RunConfig:
    """A supervised run on the training texts and behind them the unlabelled ones, each with the teacher's label."""
    answers = LoadedAdapter.load(teacher).predict(UNREAD)
    lines = [f"{text}\t{answer.label}" for text, answer in zip(UNREAD, answers, strict=True)]
    settings = config.train.model_dump() | {"self_training": 0}
    folder = file.parent
    plain = tiny_config(
        folder,
        method=config.method.model_dump(),
        train=settings,
        run={"dir": str(folder / "plain")},
        data={"train": str(file)},
    )
    file.write_text((folder / "train.tsv").read_text() + "\n".join(lines) + "\n")
    return plain


FITTED = {"name": "lt_prompt", "judge": "probe"}


@pytest.mark.parametrize("method", [PROBE, PROMPT, FITTED], ids=["probe", "prompt", "fitted"])
def test_with_equal_weights_it_is_training_on_what_the_teacher_labels(tmp_path: Path, method: dict[str, Any]) -> None:
    """Plain self-training by its definition: 13 labelled and 12 unlabelled texts, so that an epoch reads each once."""
    config = self_training_config(tmp_path, method=method, train={"pseudo_weights": "equal", "pseudo_labels": "hard"})
    run(config)
    plain = labelled_by(config.run_dir.session(0).adapter, tmp_path / "joined.tsv", config)
    run(plain)
    expected, found = state_of(plain.run_dir.adapter_final), session(config, 1)
    for name, value in found.items():
        numbers = (each if each.is_floating_point() else each.view(torch.float64) for each in (value, expected[name]))
        torch.testing.assert_close(*numbers, rtol=2e-3, atol=2e-4)  # a fit ends where slopes are below 1e-4
    assert any(not torch.equal(value, session(config, 0)[name]) for name, value in found.items())


def test_what_is_kept_are_the_teachers_probabilities(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    config = self_training_config(tmp_path, method=PROMPT, train={"pseudo_labels": "soft"})
    run(config)
    kept = load_file(config.run_dir.session(1).pseudo_labels)["probabilities"]
    teacher = LoadedAdapter.load(config.run_dir.session(0).adapter)
    scores = np.array([list(answer.scores.values()) for answer in teacher.predict(UNREAD)])
    np.testing.assert_allclose(kept, softmax(scores, axis=1), atol=1e-5)
    assert len(set(kept.argmax(1))) > 1


def test_the_texts_are_counted_and_none_is_a_training_text(tmp_path: Path) -> None:
    config = self_training_config(tmp_path, method=PROBE, data={"on_error": "skip"})
    file = tmp_path / "unlabelled.csv"
    file.write_text(file.read_text() + '" "\nthe match ended late test\n')
    manifest = preprocess(config)
    assert (
        manifest["splits"][UNLABELLED]["rows"] == len(UNREAD) + 1 == len(load_split(config.run_dir.data / UNLABELLED))
    )
    assert manifest["skipped"] == {UNLABELLED: 1}
    assert json.loads((config.run_dir.data / "skipped.jsonl").read_text())["split"] == UNLABELLED
    assert any("1 unlabelled texts are in test too" in warning for warning in manifest["warnings"])
    file.write_text("text\none more match\n")
    with pytest.raises(UserError, match="all of its texts are training texts too"):
        preprocess(config)
    file.write_text("words\none more match\n")
    with pytest.raises(UserError, match=r"no column 'text' \(data.text\)"):
        preprocess(config)


REFUSED = [
    ({"data": {"unlabelled": None}}, "needs texts without labels: set data.unlabelled"),
    ({"data": {"validation": None}}, "needs validation texts to choose a session by"),
    ({"method": {"name": "majority"}}, "has no meaning for method majority"),
    ({"train": {"objective": "pairs"}}, "objective pairs has none"),
    ({"train": {"resume": "checkpoints/step-000002"}}, "set train.resume=auto"),
]


@pytest.mark.parametrize(("sections", "fault"), REFUSED, ids=[fault for _, fault in REFUSED])
def test_what_does_not_go_with_it_is_refused(tmp_path: Path, sections: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        self_training_config(tmp_path, **sections)


def test_the_dry_run_tells_of_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = self_training_config(tmp_path, method=PROMPT)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert main(["run", "--config", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"unlabelled: {len(UNREAD)} rows" in said and "sessions: 2, each with so many steps" in said


def test_sessions_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    config = self_training_config(tmp_path, method=PROBE)
    preprocess(config)
    paper = config.run_dir.sessions / "01" / "paper.tex"
    paper.parent.mkdir(parents=True)
    paper.write_text("mine")
    with pytest.raises(UserError, match="sessions' was not written by this program: move it away"):
        run(config)
    assert paper.read_text() == "mine"
    paper.unlink()
    run(config)
    assert config.run_dir.is_finished


def test_the_best_session_is_kept_and_of_equals_the_surest() -> None:
    found = [(0.5, 0.4), (0.7, 0.9), (0.7, 0.6), (0.7, 0.6), (0.6, 0.1)]
    sessions = [{"validation": {"accuracy": accuracy, "log_loss": loss}} for accuracy, loss in found]
    assert best_session(sessions, "accuracy") == 2 and best_session(sessions, "log_loss") == 4


def script(folder: Path) -> dict[str, Any]:
    """One rank, two, and one that is killed in each session, by their statuses."""
    found = {}
    for name, world, zero, faults in (
        ("alone", 1, 3, [None]),
        ("pair", 2, 3, [None]),
        ("whole", 2, 0, [None]),
        ("killed", 1, 3, ["kill_in_save:4,files", "strike:SIGKILL,step,10,0", "strike:SIGKILL,save,1,0", None, None]),
    ):
        settings = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
        settings["zero_optimization"] = {"stage": zero}
        (folder / f"{name}.json").write_text(json.dumps(settings))
        config = self_training_config(
            folder,
            run={"dir": str(folder / name)},
            method=PROMPT,
            train={"batch_size": 4 // world, "learning_rate": 1e-2, "log_every": 1},
            logging={"trackers": ["jsonl"]},
            engine={"threads": 1, "deepspeed": str(folder / f"{name}.json")},
        )
        (folder / f"{name}.yaml").write_text(config.to_yaml())
        arguments = ["run", "--config", str(folder / f"{name}.yaml")]
        found[name] = [launch(arguments, folder / f"{name}.log", world=world, fault=fault) for fault in faults]
    return found | signalled(folder)


def signalled(folder: Path) -> dict[str, Any]:
    """A probe, which takes no steps: undisturbed, and signalled in its first fit, then before the second one."""
    found: dict[str, Any] = {"steps of a signal": []}
    for name, world, faults in (
        ("probe", 2, [None]),
        ("signalled", 2, ["strike:SIGTERM,evaluation,1,0", "strike:SIGTERM,evaluation,1,0", None]),
    ):
        run = folder / name
        config = self_training_config(
            folder, run={"dir": str(run)}, method=PROBE, engine={"threads": 1}, evaluate={"batch_size": 4}
        )
        (folder / f"{name}.yaml").write_text(config.to_yaml())
        found[name] = []
        for fault in faults:
            log, arguments = folder / f"{name}.log", ["run", "--config", str(folder / f"{name}.yaml")]
            found[name].append(launch(arguments, log, world=world, fault=fault))
            if fault:
                found["steps of a signal"].append([read_json(run / "PREEMPTED"), (run / "adapter").exists()])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def statuses(folder: Path) -> dict[str, Any]:
    return run_script("tests.stages.test_self_training:script", folder, 500)


def test_interrupted_in_every_session_it_ends_as_if_it_had_not_been(statuses: dict[str, Any], folder: Path) -> None:
    assert statuses["alone"] == [[0]]
    assert statuses["killed"] == [[-signal.SIGKILL]] * 3 + [[0], [0]]
    for number in (0, 1):
        for name in ("adapter", "adapter-final"):
            undisturbed, killed = (folder / run / "sessions" / f"{number:02d}" / name for run in ("alone", "killed"))
            files = sorted(file.name for file in undisturbed.iterdir())
            assert all((killed / file).read_bytes() == (undisturbed / file).read_bytes() for file in files)
    log = (folder / "killed.log").read_text()
    assert "sessions/00/checkpoints/step-000002\n" in log
    # Of session 1 the checkpoint of step 4 may have been whole when it was killed in step 6.
    assert re.search("session 1 of self-training\ntrain: goes on after step [24],", log)
    assert f"{folder / 'killed' / 'adapter'} is current" in log


def test_a_signal_stops_what_takes_no_steps(statuses: dict[str, Any], folder: Path) -> None:
    """Behind the fit that it comes in, and between two batches of the texts that get pseudo labels."""
    assert statuses["probe"] == [[0, 0]] and statuses["signalled"] == [[85, 85], [85, 85], [0, 0]]
    assert statuses["steps of a signal"] == [[{"signal": "SIGTERM"}, False]] * 2
    log = (folder / "signalled.log").read_text()
    for where in ("when the fit was over", "before the pseudo labels were made"):
        assert log.count(f"train: SIGTERM: stopped {where}; the same command goes on from there") == 1
    for name in ("adapter", "adapter-final"):
        expected, found = (state_of(folder / run / name) for run in ("probe", "signalled"))
        assert all(torch.equal(value, expected[tensor]) for tensor, value in found.items())


@pytest.mark.parametrize("name", ["pair", "whole"])
def test_two_ranks_do_as_one(statuses: dict[str, Any], folder: Path, name: str) -> None:
    """Sharded (pair) and not."""
    assert statuses[name] == [[0, 0]]
    for number in (0, 1):
        expected = state_of(folder / "alone" / "sessions" / f"{number:02d}" / "adapter-final")
        found = state_of(folder / name / "sessions" / f"{number:02d}" / "adapter-final")
        for tensor, value in found.items():
            torch.testing.assert_close(value, expected[tensor], rtol=1e-3, atol=1e-5)
