"""A tiny run with unlabelled texts."""

from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from tests.support.tiny_run import TEXTS, tiny_config

UNREAD = [f"{text} again and again" for texts in TEXTS.values() for text in texts]


def self_training_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """`tiny_config` with a file of other texts without labels, of which one is a training text."""
    train = {"self_training": 1, "max_steps": 6, "batch_size": 4, "eval_every": 2, "save_every": 2} | sections.pop(
        "train", {}
    )
    data = {"unlabelled": str(folder / "unlabelled.csv")} | sections.pop("data", {})
    (folder / "unlabelled.csv").write_text("text\n" + "\n".join([*UNREAD, "one more match"]) + "\n")
    return tiny_config(folder, train=train, data=data, **sections)
