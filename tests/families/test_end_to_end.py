"""Whole runs on types of models that no other test trains: 8 bits (and 4) and checkpointing, from texts to figures.

One runs with all tests; the others with `bash launch/test.sh --families`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from tests.families.models import tiny_model
from tests.support.tiny import tiny_tokenizer

RUNS = {
    "gpt_oss": ("int8", "lt_prefix"),
    "qwen3_moe": ("int4", "lt_prefix"),
    "mixtral": ("int8", "lt_prompt"),
    "deepseek_v3": ("int8", "lt_prefix"),
    "granitemoe": ("int8", "prefix"),
    "qwen3_5_text": ("int8", "lt_prefix"),
    "phi3": ("int4", "lt_prefix"),
    "cohere2": ("int8", "lt_prefix"),
    "gemma4_text": ("int8", "lt_prefix"),
    "smollm3": ("int8", "lt_prompt"),
    "modernbert": ("int8", "lt_prefix"),
    "xlm-roberta": ("int8", "lt_prefix"),
    "t5": ("int8", "lt_prefix"),
}
OFTEN = "gpt_oss"
WORDS = {"apple": "red fruit", "bicycle": "two wheels", "cloud": "high up"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == OFTEN else pytest.mark.families) for kind in RUNS]
)
def test_a_run_learns_from_texts_to_figures(kind: str, tmp_path: Path) -> None:
    """Each text has one of three words, which says the label: with the right gradients, some steps learn that."""
    quantization, method = RUNS[kind]
    tiny_model(kind).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for split, count in (("train", 48), ("test", 15)):
        words = [list(WORDS)[index % 3] for index in range(count)]
        lines = [f"so the {word} {split}{index}\t{WORDS[word]}" for index, word in enumerate(words)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    backbone = {"name_or_path": str(tmp_path / "model"), "dtype": "float32", "quantization": quantization}
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "backbone": backbone | {"gradient_checkpointing": True},
        "data": {split: str(tmp_path / f"{split}.tsv") for split in ("train", "test")} | {"max_length": 64},
        "method": {"name": method} | ({"start": "random", "init_std": 0.3} if method == "lt_prefix" else {}),
        "train": {"max_steps": 30, "batch_size": 8, "learning_rate": 0.01, "log_every": 1},
        "evaluate": {"splits": ["test"]},
        "engine": {"threads": 1},
        "logging": {"trackers": ["jsonl"]},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert main(["run", "--config", str(tmp_path / "run.yaml")]) == 0
    lines = (tmp_path / "run" / "logs" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    figures = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["test"]
    assert figures["accuracy"] > figures["majority"]["accuracy"]
