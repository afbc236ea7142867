"""A comparison that takes seconds."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.support.tiny_run import tiny_config


def write_comparison(folder: Path, **changes: Any) -> Path:
    config = tiny_config(folder)
    values: dict[str, Any] = {
        "dir": str(folder / "comparison"),
        "seeds": [0, 1],
        "grid": {"train.learning_rate": [0.003, 0.03]},
        "base": {
            "train": {"objective": "candidates", "max_steps": 4, "batch_size": 4, "eval_every": 2, "log_every": 1},
            "logging": {"trackers": ["jsonl"]},
        },
        "backbones": {"tiny": {"backbone": {"name_or_path": config.backbone.name_or_path, "dtype": "float32"}}},
        "datasets": {"news": {"data": config.data.model_dump(include={"train", "validation", "test", "max_length"})}},
        "methods": {"lt_prompt": {}, "prompt": {"method": {"tokens": 4}}, "majority": {}},
    }
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return file


def rows_of(folder: Path, name: str = "results") -> list[dict[str, Any]]:
    """Of the table of that name, which the comparison wrote."""
    return pq.read_table(folder / "comparison" / f"{name}.parquet").to_pylist()
