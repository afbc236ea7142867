"""Two real ranks under ZeRO-3: the same text states as one, the same probe, and training that starts from it.

covers stages/encode_texts
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.text_states import load_text_states
from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_config

STAGES = ("preprocess", "encode-labels", "encode-texts", "train", "evaluate")
RUNS: dict[str, dict[str, Any]] = {
    "probe": {"method": {"name": "probe"}},
    "lt_prompt": {"method": {"name": "lt_prompt"}},
    "joined": {
        "method": {"name": "lt_prompt", "position": "after"},
        "backbone": {"layers": [1, 2], "gradient_checkpointing": True},
    },
}


def script(folder: Path) -> dict[str, Any]:
    """Each run on one rank and on two; statuses by run and world."""
    statuses = {}
    for run, sections in RUNS.items():
        for world in (1, 2):
            name = f"{run}-{world}"
            config = tiny_config(
                folder,
                run={"dir": str(folder / name)},
                **sections,
                train={"max_steps": 2, "batch_size": 4 // world, "eval_every": 1, "learning_rate": 1e-2},
                logging={"trackers": ["jsonl"]},
                engine={"threads": 1},
            )
            (folder / f"{name}.yaml").write_text(config.to_yaml())
            log = folder / f"{name}.log"
            statuses[name] = [
                launch([stage, "--config", str(folder / f"{name}.yaml")], log, world=world) for stage in STAGES
            ]
    return statuses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    statuses = run_script("tests.stages.test_text_states_ranks:script", folder, 600)
    for name, found in statuses.items():
        assert all(status == 0 for ranks in found for status in ranks), (folder / f"{name}.log").read_text()
    return folder


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_two_ranks_read_what_one_reads(folder: Path, split: str) -> None:
    alone, shared = (load_text_states(folder / f"probe-{world}" / "texts", split) for world in (1, 2))
    assert len(alone.chunks) == 1 and len(shared.chunks) == 2
    torch.testing.assert_close(shared.whole(), alone.whole(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_come_to_the_same_metrics(folder: Path, run: str) -> None:
    alone, shared = (
        json.loads((folder / f"{run}-{world}" / "evaluation" / "metrics.json").read_text()) for world in (1, 2)
    )
    for split in ("validation", "test"):
        assert shared[split]["log_loss"] == pytest.approx(alone[split]["log_loss"], rel=1e-3)
