"""A finished comparison without any training: invented runs, put together by the real tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.comparison.tables import Published, write_tables
from pipeline.core.run_dir import RunDir

STEPS = (0, 30, 60, 90, 120, 150)
STEPPED = {"lt_prefix": 0.9, "lt_prompt": 0.86, "prefix": 0.84, "prompt": 0.82, "p_tuning": 0.7}
FITTED = {"probe": 0.86}
PLAIN = {"zero_shot": 0.62, "majority": 0.4}
RATES = (0.003, 0.03)


def invent(
    folder: Path,
    datasets: Sequence[str],
    *,
    methods: Sequence[str] = ("lt_prefix", "lt_prompt", "prefix", "probe", "majority"),
    backbones: Sequence[str] = ("minilm",),
    sizes: Sequence[str] = ("all",),
    seeds: int = 2,
    texts: int = 60,
    split: str = "test",
    published: Published | None = None,
    patience: int | None = None,
    missed: Sequence[str] = (),
    reference: str | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Writes what `compare` leaves behind in `folder`; gives it back. `missed`: methods that did not converge."""
    random = np.random.default_rng(sum(map(ord, "".join(datasets))))
    rows = []
    for dataset in datasets:
        ease = random.uniform(-0.2, 0.05)
        for backbone in backbones:
            for size in sizes:
                for method in methods:
                    level = (STEPPED | FITTED | PLAIN).get(method, 0.8) + ease + random.normal(0, 0.02)
                    level -= 0.5 / np.sqrt(1000 if size == "all" else int(size)) if method not in PLAIN else 0
                    for seed in range(seeds if method not in PLAIN else 1):
                        run = f"runs/{len(rows)}"
                        row = {"dataset": dataset, "backbone": backbone, "method": method, "size": size, "seed": seed}
                        own = {"run": run, "split": split, "patience": patience, "converged": method not in missed}
                        rows.append(row | own | _run(folder / run, split, method, level, random, texts))
    write_tables(folder, rows, reference, published, about)
    return folder


def _run(
    folder: Path, split: str, method: str, level: float, random: np.random.Generator, texts: int
) -> dict[str, Any]:
    """The rest of a row, and the predictions it says something about."""
    truth = np.arange(texts) % 2
    wrong = random.random(texts) > min(0.99, level + random.normal(0, 0.01))
    predicted = np.where(wrong, 1 - truth, truth)
    file = RunDir(folder).predictions_file
    file.parent.mkdir(parents=True)
    words = np.array(["yes", "no"])
    columns = {"split": [split] * texts, "row": range(texts), "label": words[truth], "prediction": words[predicted]}
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), file)
    accuracy = float((predicted == truth).mean())
    steps = 0 if method in FITTED | PLAIN else STEPS[-1]
    speed = 0.2 + 0.1 * (sum(map(ord, method)) % 5)
    curve = [
        {"step": step, "seconds": step * speed, "value": float(accuracy - 0.4 * np.exp(-step / (90 * speed)))}
        for step in STEPS[1:]
    ]
    grid = [{"setting": {"train.learning_rate": rate}, "validation": accuracy - rate} for rate in RATES]
    return {
        "method_name": method if method in STEPPED | FITTED | PLAIN else "prompt",
        "metric": "accuracy",
        "setting": grid[0]["setting"] if steps else {},
        "figures": {"accuracy": accuracy, "macro_f1": accuracy, "mcc": 2 * accuracy - 1, "n": texts},
        "validation": accuracy + float(random.normal(0, 0.005)),
        "steps": steps,
        "best_step": steps,
        "readings": 16 * steps + 1000 * (method in FITTED),
        "seconds": steps * speed or 2.5 * (method in FITTED),
        "parameters": 0 if method in PLAIN else int(1000 * 4 ** (sum(map(ord, method)) % 6)),
        "curve": curve if steps else [],
        "grid": grid if steps else [],
        "fingerprint": json.dumps(level),
    }
