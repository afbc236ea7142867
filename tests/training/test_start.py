"""Training that starts from another run's injection: what is copied, what is new, and what is refused.

covers training/start
"""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.adapter.directory import load_adapter
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.stages.dry_run import plan
from pipeline.stages.evaluate import evaluate
from pipeline.stages.run import run
from pipeline.stages.train import train
from pipeline.training.start import HEAD
from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_config, tiny_run

STILL = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-20, "weight_decay": 0.0, "eval_every": 2}
PROMPT: dict[str, Any] = {"name": "prompt", "tokens": 4}
METHODS: dict[str, dict[str, Any]] = {
    "prefix": {"name": "prefix", "tokens": 4, "reparametrisation": True},
    "generated": {"name": "generated", "tokens": 2, "rank": 4},
    "lt_prefix": {"name": "lt_prefix", "head": "label_aware"},
}


def started(folder: Path, source: RunConfig, method: dict[str, Any], **train_keys: Any) -> RunConfig:
    """A run of two labels, from the run of three."""
    folder.mkdir(exist_ok=True)
    config = tiny_config(folder, method=method, train=STILL | {"start_from": source.run.dir} | train_keys)
    for file in folder.glob("*.tsv"):
        lines = [line for line in file.read_text().splitlines() if not line.endswith("science")]
        file.write_text("\n".join(lines) + "\n")
    return config


@pytest.fixture(scope="module", params=METHODS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_run(tmp_path_factory.mktemp(request.param), method=METHODS[request.param])


def test_the_injection_is_copied_and_the_head_is_new(source: RunConfig, tmp_path: Path) -> None:
    config = started(tmp_path, source, METHODS[source.method.name])
    run(config)
    old, new = load_adapter(source.run_dir.adapter), load_adapter(config.run_dir.adapter_final)
    assert new.labels.names == ["business", "sport"]
    copied = [name for name in new.method_state if not name.startswith(HEAD)]
    assert copied
    for name in copied:
        torch.testing.assert_close(new.method_state[name], old.method_state[name], rtol=0, atol=1e-15)
    if source.method.name != "prefix":
        return
    plain = tiny_config(tmp_path, run={"dir": str(tmp_path / "plain")}, method=METHODS[source.method.name], train=STILL)
    started(tmp_path, source, METHODS[source.method.name])  # its two labels
    run(plain)
    other = load_adapter(plain.run_dir.adapter_final)
    for name in new.method_state.keys() - set(copied):
        torch.testing.assert_close(new.method_state[name], other.method_state[name], rtol=0, atol=1e-15)
    assert any(not torch.equal(new.method_state[name], other.method_state[name]) for name in copied)


def test_what_it_started_from_is_part_of_what_it_is(tmp_path: Path) -> None:
    method = PROMPT
    source = tiny_run(tmp_path / "source", method=method)
    config = started(tmp_path / "run", source, method)
    run(config)
    train(config)  # is current
    moved = tmp_path / "moved"
    shutil.move(source.run_dir.path, moved)
    assert evaluate(config)["test"]["n"] == 6, "what it started from may go"
    shutil.move(moved, source.run_dir.path)
    tensors = source.run_dir.adapter / "adapter_config.json"
    tensors.write_text(tensors.read_text() + " ")
    with pytest.raises(UserError, match=r"holds a finished run, and train\.start_from: adapter was .*, now"):
        train(config)


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ({"name": "prompt", "tokens": 5}, None, r"it was trained with method\.tokens=4, here 5: set it as there"),
        ({"name": "prefix", "tokens": 4}, None, "the adapter is of method prompt, this run of prefix"),
        ({"name": "prompt", "tokens": 4}, "nowhere", "'nowhere' is not an adapter directory"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    method: dict[str, Any], path: str | None, fault: str, tmp_path: Path
) -> None:
    source = tiny_run(tmp_path / "source", method=PROMPT)
    config = started(tmp_path / "run", source, method, **({"start_from": path} if path else {}))
    with pytest.raises(UserError, match=f"^train.start_from: .*{fault}") as error:
        run(config)
    assert "\n" not in str(error.value) and not config.run_dir.data.exists(), "before anything is made"
    with pytest.raises(UserError, match=f"^train.start_from: .*{fault}"):
        plan(config)


def test_methods_without_an_injection_are_refused(tmp_path: Path) -> None:
    lora = {"name": "lora", "rank": 2}
    source = tiny_run(tmp_path / "source", method=PROMPT)
    with pytest.raises(UserError, match="this run of lora"):
        run(started(tmp_path / "run", source, lora))
    with pytest.raises(UserError, match=r"train\.start_from has no meaning for method probe, which takes no steps"):
        started(tmp_path / "probe", source, {"name": "probe"})


@pytest.mark.parametrize("part", ["", "adapter", "adapter-final", "sessions/00"])
def test_a_run_does_not_start_from_its_own_adapter(part: str, tmp_path: Path) -> None:
    """Which training replaces: evaluation would find a run that started from something else."""
    with pytest.raises(UserError, match=r"train\.start_from=.* is of this run itself.*: choose another run\.dir"):
        tiny_config(tmp_path, method=PROMPT, train={"start_from": str(tmp_path / "run" / part)})
    assert tiny_config(tmp_path, method=PROMPT, train={"start_from": str(tmp_path / "run" / "kept")})


def interrupted(folder: Path) -> dict[str, list[list[int]]]:
    """Statuses of a run, of one from its prompt, and of another that is killed on the way."""
    source = tiny_config(folder / "source", method=PROMPT, train={"max_steps": 1})
    settings = {"max_steps": 6, "save_every": 2, "learning_rate": 1e-2, "eval_every": 3}
    found = {}
    for name, faults in (("source", [None]), ("alone", [None]), ("killed", ["kill_in_save:4,files", None])):
        config = source if name == "source" else started(folder / name, source, PROMPT, **settings)
        (folder / f"{name}.yaml").write_text(config.to_yaml())
        arguments = ["run", "--config", str(folder / f"{name}.yaml"), "logging.trackers=[jsonl]", "engine.threads=1"]
        found[name] = [launch(arguments, folder / f"{name}.log", fault=fault) for fault in faults]
    return found


def test_what_was_interrupted_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """It goes on from its own checkpoint, and not from the start again."""
    statuses = run_script("tests.training.test_start:interrupted", tmp_path, 300)
    assert statuses == {"source": [[0]], "alone": [[0]], "killed": [[-signal.SIGKILL], [0]]}
    log = (tmp_path / "killed.log").read_text()
    assert log.count("train: starts from 1 tensors") == 1 and "goes on after step 2," in log
    for adapter in ("adapter", "adapter-final"):
        alone, killed = (load_adapter(tmp_path / name / "run" / adapter) for name in ("alone", "killed"))
        assert alone.method_state.keys() == killed.method_state.keys()
        assert all(torch.equal(value, killed.method_state[name]) for name, value in alone.method_state.items())
