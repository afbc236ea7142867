"""Training for real: a toy task that can be learnt, on tiny backbones, alone and on two ranks.

covers engine/models, training/loop, training/metrics_log, training/trainer
covers training/adapter_writer
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.config import RunConfig, load_config
from pipeline.distributed.zero import element_count
from pipeline.engine.backbone import backbone_of
from pipeline.engine.startup import start
from pipeline.stages.training_task import TrainingTask
from pipeline.training.trainer import Trainer
from tests.support.fork_server import run_forked
from tests.support.processes import launch, run_script
from tests.support.tiny import save_tiny
from tests.support.tiny_run import label_states_of

WORDS = {"apple": "red fruit", "bicycle": "two wheels", "cloud": "high up"}
ADAPTER = "adapter/adapter.safetensors"


def write_task(folder: Path) -> None:
    """Each text holds one of three words among noise; the label is that word's."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 48), ("validation", 15), ("test", 15)):
        lines = ["text\tlabel"]
        for index in range(count):
            word = list(WORDS)[index % 3]
            noise = generator.choice(["so", "and", "the", "a", "one"], size=generator.integers(0, 4)).tolist()
            place = generator.integers(0, len(noise) + 1)
            lines.append(f"{' '.join([*noise[:place], word, *noise[place:]])} {split[0]}{index}\t{WORDS[word]}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_task(folder)
    for family in ("llama_gqa", "bert"):
        save_tiny(folder / family, family, hidden_size=32)
    return folder


def arguments(folder: Path, run: str, *overrides: str, command: str = "run", backbone: str = "llama_gqa") -> list[str]:
    """Command line of a run; the YAML file has what all runs share."""
    values = {
        "run": {"dir": "replaced"},
        "backbone": {"name_or_path": "replaced", "dtype": "float32"},
        "data": {split: str(folder / f"{split}.tsv") for split in ("train", "validation", "test")} | {"max_length": 64},
        "method": {"name": "lt_prefix", "head": "label_aware", "start": "random", "init_std": 0.3},
        "train": {"max_steps": 12, "batch_size": 8, "learning_rate": 0.01, "log_every": 1, "eval_every": 6},
        "engine": {"threads": 1},
        "logging": {"trackers": ["jsonl"]},
    }
    (folder / "config.yaml").write_text(json.dumps(values))
    given = [f"run.dir={folder / run}", f"backbone.name_or_path={folder / backbone}", *overrides]
    return [command, "--config", str(folder / "config.yaml"), *given]


def log_of(run: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run that others are compared with, learnt through the real command line."""
    options = ["train.max_steps=45", "logging.trackers=[jsonl, tensorboard]", "data.validation=null"]
    options += ["evaluate.splits=[test]", "train.objective=candidates"]
    before = hashes(folder / "llama_gqa")
    log = folder / "alone.log"
    assert run_forked("pipeline.cli:main", arguments(folder, "alone", *options), log, 300) == 0, log.read_text()
    assert hashes(folder / "llama_gqa") == before, "the backbone is frozen"
    return folder / "alone"


def test_a_decoder_learns_the_task(alone: Path) -> None:
    losses = log_of(alone)
    assert len(losses) == 45 and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    figures = json.loads((alone / "evaluation" / "metrics.json").read_text())["test"]
    assert figures["accuracy"] > figures["majority"]["accuracy"] + 0.2
    rates = log_of(alone, "learning_rate")
    assert max(rates) == rates[2] == 0.01 and rates[-1] < 0.001
    assert list((alone / "logs").rglob("events.out.tfevents.*")), "TensorBoard has something to show"
    state = load_file(alone / ADAPTER)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    said = alone.with_suffix(".log").read_text()
    assert "Traceback" not in said and "trainable parameters" in said


def test_a_second_run_changes_nothing(alone: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["train.max_steps=45", "logging.trackers=[jsonl, tensorboard]", "data.validation=null"]
    options += ["evaluate.splits=[test]", "train.objective=candidates"]
    times = {path: path.stat().st_mtime_ns for path in alone.rglob("[!.]*") if path.is_file()}  # not the lock
    with caplog.at_level("INFO", "pipeline"):
        assert main(arguments(folder, "alone", *options)) == 0
    for part in ("data", "labels", "adapter", "evaluation"):
        assert f"{alone / part} is current" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_same_seed_same_adapter_and_another_seed_another(folder: Path) -> None:
    for run, seed in (("seed-a", 0), ("seed-b", 0), ("seed-c", 1)):
        options = ["train.max_steps=3", f"run.seed={seed}", "data.validation=null", "evaluate.splits=[test]"]
        assert main(arguments(folder, run, *options)) == 0
    first, second, third = ((folder / f"seed-{name}" / ADAPTER).read_bytes() for name in "abc")
    assert first == second != third
    assert log_of(folder / "seed-a") == log_of(folder / "seed-b")


@pytest.mark.parametrize(
    ("run", "backbone", "options"),
    [
        ("encoder", "bert", ["method.name=lt_prompt", "method.init_std=null"]),
        ("stage-2-int8", "llama_gqa", ["backbone.quantization=int8", "engine.deepspeed=ds_configs/zero2_int8.json"]),
        (
            "bf16",
            "llama_gqa",
            ["backbone.dtype=bfloat16", "backbone.gradient_checkpointing=true", "method.shortlist=2"],
        ),
        ("sampled", "bert", ["train.objective=candidates", "train.candidates=2", "method.pooling=tokens"]),
    ],
)
def test_every_engine_and_objective_trains(folder: Path, run: str, backbone: str, options: list[str]) -> None:
    before = hashes(folder / backbone)
    assert main(arguments(folder, run, *options, "train.max_steps=24", "train.eval_every=24", backbone=backbone)) == 0
    losses = log_of(folder / run)
    assert len(losses) == 24 and np.isfinite(losses).all() and np.mean(losses[-6:]) < np.mean(losses[:6])
    assert {tensor.dtype for tensor in load_file(folder / run / ADAPTER).values()} == {torch.float32}
    assert len(log_of(folder / run, "validation/accuracy")) == 1
    assert hashes(folder / backbone) == before


def test_early_stopping_keeps_the_best(folder: Path) -> None:
    options = ["train.max_steps=40", "train.eval_every=1", "train.early_stopping_patience=2", "train.warmup_ratio=0"]
    assert main(arguments(folder, "stopped", *options, "train.learning_rate=1e-9")) == 0
    accuracies = log_of(folder / "stopped", "validation/accuracy")
    # No label changes, so that two evaluations bring nothing; of three equal ones the least log-loss decides.
    assert len(accuracies) == 3 and len(log_of(folder / "stopped")) == 3
    log_losses = log_of(folder / "stopped", "validation/log_loss")
    best = 1 + min(range(3), key=lambda place: (-accuracies[place], log_losses[place]))
    kept = load_file(folder / "stopped" / ADAPTER)
    last = load_file(folder / "stopped" / "adapter-final" / "adapter.safetensors")
    assert all(torch.equal(kept[name], last[name]) for name in kept) == (best == 3)
    summary = json.loads((folder / "stopped" / "adapter-final" / "summary.json").read_text())
    assert (summary["steps"], summary["best_step"], summary["converged"]) == (3, best, True)
    assert summary["readings"] == 3 * 8 * 3, "steps of 8 texts, each read with 3 labels"


@pytest.mark.parametrize(("metric", "steps"), [("accuracy", 0), ("log_loss", 4)])
def test_where_no_evaluation_can_be_better_patience_takes_no_step_more(folder: Path, metric: str, steps: int) -> None:
    """The probe, which is the start, knows all texts that it was fitted to."""
    data = f"data.validation={folder / 'train.tsv'}"
    settled = ["train.max_steps=4", "train.eval_every=2", "train.early_stopping_patience=3", "train.warmup_ratio=0"]
    options = [data, "method={name: lt_prefix}", *settled, f"train.best_metric={metric}", "train.learning_rate=1e-9"]
    assert main(arguments(folder, f"perfect-{metric}", *options)) == 0
    summary = json.loads((folder / f"perfect-{metric}" / "adapter-final" / "summary.json").read_text())
    assert summary["validation"]["accuracy"] == 1.0 and summary["best_step"] == 0
    assert (summary["steps"], summary["converged"]) == (steps, steps == 0)


@pytest.mark.parametrize("options", [["train.early_stopping_patience=2"], []])
def test_a_training_that_reaches_its_last_step_has_not_shown_that_it_converged(
    folder: Path, options: list[str]
) -> None:
    run = f"capped-{len(options)}"
    short = ["train.max_steps=2", "train.eval_every=1", "train.warmup_ratio=0", "train.learning_rate=1e-9"]
    assert main(arguments(folder, run, *short, *options)) == 0
    assert json.loads((folder / run / "adapter-final" / "summary.json").read_text())["converged"] is False


def trainer_of(config: RunConfig) -> Trainer:
    accelerator, ranks = start(config)
    backbone = backbone_of(config.backbone, config.data)
    parts = (config.data, config.labels, config.method, config.train)
    task = TrainingTask(config.run_dir, config.run.seed, backbone, *parts)
    return task.build_trainer(accelerator, ranks, label_states_of(config), task.splits(ranks))


def test_accumulation_equals_a_larger_batch_and_the_optimizer_holds_the_method_alone(folder: Path) -> None:
    for run, batch, accumulation in (("large", 8, 1), ("accumulated", 4, 2)):
        options = [f"train.batch_size={batch}", f"train.gradient_accumulation={accumulation}"]
        assert main(arguments(folder, run, *options)) == 0
    np.testing.assert_allclose(log_of(folder / "accumulated"), log_of(folder / "large"), rtol=1e-4)
    large, accumulated = (load_file(folder / run / ADAPTER) for run in ("large", "accumulated"))
    for name, tensor in large.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-3, atol=1e-4)
    trainer = trainer_of(load_config(folder / "large" / "config.yaml"))
    held = sum(element_count(p) for p in trainer.model.parameters() if p.requires_grad)
    assert held == sum(tensor.numel() for tensor in large.values())
    assert set(trainer.trained_state()) == set(large)


SMALL = ["train.batch_size=4", "method.shortlist=2", "method.first_layer=1"]


def two_ranks(folder: Path) -> list[int]:
    options = [*SMALL, "train.keep_token_states=true"]  # the same up to rounding
    return launch(arguments(folder, "two-ranks", *options), folder / "two-ranks.log", world=2)


def test_two_ranks_train_as_one_with_the_same_global_batch(folder: Path) -> None:
    assert main(arguments(folder, "one-rank", "train.gradient_accumulation=2", *SMALL)) == 0
    log = folder / "two-ranks.log"
    assert run_script("tests.stages.test_train:two_ranks", folder, 300) == [0, 0], log.read_text()
    np.testing.assert_allclose(log_of(folder / "two-ranks"), log_of(folder / "one-rank"), rtol=1e-4)
    one, two = (load_file(folder / run / ADAPTER) for run in ("one-rank", "two-ranks"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert log.read_text().count("trainable parameters, 2 rank(s)") == 1, "rank 0 alone speaks"
    metrics = [
        json.loads((folder / run / "evaluation" / "metrics.json").read_text()) for run in ("one-rank", "two-ranks")
    ]
    assert metrics[0]["test"]["log_loss"] == pytest.approx(metrics[1]["test"]["log_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("encode-labels", ["data.max_length=125"], "set data.max_length to"),
        ("train", ["method.dropout=0.1", "labels.template=Other {label}."], "hypotheses was"),
        ("train", ["backbone.dtype=bfloat16"], "backbone.dtype was 'float32', now 'bfloat16'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    folder: Path, capsys: pytest.CaptureFixture, command: str, options: list[str], words: str
) -> None:
    run = f"refused-by-{command}"
    first = options if command == "encode-labels" else []
    for before in ("preprocess", "encode-labels")[: 1 if first else 2]:
        assert main(arguments(folder, run, *first, command=before)) == 0
    capsys.readouterr()
    assert main(arguments(folder, run, *options, command=command)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and words in message
    assert not (folder / run / "adapter").exists()


def test_a_loss_that_is_not_finite_ends_it(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(folder, "diverged", "train.learning_rate=1e30", "train.max_grad_norm=0")) == 2
    assert "lower train.learning_rate" in capsys.readouterr().err.splitlines()[-1]


def test_training_needs_the_earlier_stages(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(folder, "nothing", command="train")) == 2
    assert "data/manifest.json' does not exist: run preprocess first" in capsys.readouterr().err
