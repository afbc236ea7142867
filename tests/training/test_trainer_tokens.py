"""A step whose passes are cut by tokens is the step over the same texts.

covers training/trainer
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig, load_config
from pipeline.data import batches
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from pipeline.training import trainer
from tests.support.tiny_run import tiny_config
from tests.support.worlds import run_worlds

STEPS = 3


def config_in(folder: Path, name: str, zero: int, **train_settings: Any) -> RunConfig:
    settings = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
    settings["zero_optimization"] = {"stage": zero}
    (folder / "zero.json").write_text(json.dumps(settings))
    config = tiny_config(
        folder,
        run={"dir": str(folder / name)},
        train={"max_steps": STEPS, "eval_every": STEPS, "log_every": 1, "learning_rate": 1e-2} | train_settings,
        evaluate={"tokens_per_batch": 100} if "tokens_per_batch" in train_settings else {},
        logging={"trackers": ["jsonl"]},
        engine={"deepspeed": str(folder / "zero.json")},
    )
    (folder / f"{name}.yaml").write_text(config.to_yaml())
    return config


def trained(config: RunConfig) -> list[float]:
    """Loss and gradient norm of each step, and the validation log-loss behind the last."""
    preprocess(config)
    encode_labels(config)
    train(config)
    rows = [json.loads(line) for line in config.run_dir.metrics_log.read_text().splitlines()]
    steps = [row[key] for row in rows if "loss" in row for key in ("loss", "gradient_norm")]
    return [*steps, *(row["validation/log_loss"] for row in rows if "validation/log_loss" in row)]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_cut_by_tokens_it_is_the_same_step(tmp_path: Path, zero: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[list[int]] = []

    def counting(*arguments: Any) -> Any:
        cuts.append([len(part) for part in batches.rank_slice_within(*arguments)])
        return batches.rank_slice_within(*arguments)

    monkeypatch.setattr(trainer, "rank_slice_within", counting)
    expected = trained(config_in(tmp_path, "rows", zero, batch_size=6))
    assert len(expected) == 2 * STEPS + 1 and not cuts
    for name, settings in (
        ("tokens", {"batch_size": 6, "tokens_per_batch": 3 * 48}),
        ("accumulated", {"batch_size": 2, "gradient_accumulation": 3, "tokens_per_batch": 3 * 48}),
    ):
        found = trained(config_in(tmp_path, name, zero, **settings))
        assert found == pytest.approx(expected, rel=1e-4)
    assert len(cuts) == 2 * STEPS and all(sum(cut) == 6 and len(cut) > 1 for cut in cuts)
    assert any(len(set(cut)) > 1 for cut in cuts), "all alike need no weights"


def both(folder: Path) -> list[list[float]]:
    """On each rank: passes of a number of texts, and of tokens."""
    return [trained(load_config(folder / f"{name}.yaml")) for name in ("rows", "tokens")]


@pytest.mark.parametrize(("zero", "objective"), [(2, "batch"), (3, "candidates")])
def test_ranks_with_shares_of_other_lengths_make_the_same_step(tmp_path: Path, zero: int, objective: str) -> None:
    """With the objective batch too, where a text is judged against the labels that both ranks have."""
    config_in(tmp_path, "rows", zero, batch_size=3, objective=objective)
    config_in(tmp_path, "tokens", zero, batch_size=3, tokens_per_batch=3 * 48, objective=objective)
    found = run_worlds("tests.training.test_trainer_tokens:both", [2], tmp_path, 300)[2]
    for rows, tokens in found:
        assert tokens == pytest.approx(rows, rel=1e-4) and len(rows) == 2 * STEPS + 1
    if objective == "batch":
        alone = trained(config_in(tmp_path, "alone", zero, batch_size=6, objective=objective))
        assert alone == pytest.approx(found[0][0], rel=1e-3)
