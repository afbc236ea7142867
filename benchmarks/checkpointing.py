"""What checkpoints cost: time per step with one at every step over none, and bytes per checkpoint over adapter bytes.

    python benchmarks/checkpointing.py --config launch/recipes/sst2_lt_prefix.yaml --steps 40

Trains from the start by turns with and without checkpoints, so that both meet the same noise, and compares medians over
the steps. The waiting that a checkpoint causes falls into the time of the step after it.
"""

import argparse
import json
import shutil
import tempfile
from statistics import median

from pipeline.config import RunConfig, load_config
from pipeline.core.run_dir import RunDir
from pipeline.engine.startup import leave
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train

WARM_UP_STEPS = 5
NEVER = 10**9


def main() -> None:
    """Prints both ratios, and what they are made of, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=40, help="steps of each training (default 40)")
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each kind (default 2)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    preprocess(config)
    encode_labels(config)
    seconds: dict[int, list[float]] = {1: [], NEVER: []}
    for _ in range(options.rounds):
        for save_every, found in seconds.items():
            times, sizes = trained(config, options.steps, save_every)
            found += times
    with_checkpoints, without = median(seconds[1]), median(seconds[NEVER])
    measured = {"step_seconds_saving_each": with_checkpoints, "step_seconds_saving_none": without}
    ratios = {"step_time_ratio": with_checkpoints / without, "bytes_ratio": sizes["checkpoint"] / sizes["adapter"]}
    print(json.dumps(measured | {f"{key}_bytes": size for key, size in sizes.items()} | ratios, indent=2))
    leave()


def trained(config: RunConfig, steps: int, save_every: int) -> tuple[list[float], dict[str, int]]:
    """Trains in a copy of the run directory: seconds of each step after the warm-up, and sizes in bytes."""
    with tempfile.TemporaryDirectory(dir=config.run_dir.path, prefix="checkpointing-") as folder:
        place = RunDir(folder)
        shutil.copytree(config.run_dir.data, place.data)
        shutil.copytree(config.run_dir.labels, place.labels)
        settings = {"max_steps": steps, "log_every": 1, "save_every": save_every, "eval_every": NEVER}
        train(
            config.model_copy(
                update={
                    "run": config.run.model_copy(update={"dir": folder}),
                    "train": config.train.model_copy(update=settings),
                }
            )
        )
        lines = [json.loads(line) for line in place.metrics_log.read_text().splitlines()]
        checkpoint = max(place.checkpoints.glob("step-*"))
        sizes = {
            "checkpoint": sum(file.stat().st_size for file in checkpoint.iterdir()),
            "adapter": (place.adapter_final / "adapter.safetensors").stat().st_size,
        }
    return [line["seconds"] for line in lines if "seconds" in line][WARM_UP_STEPS:], sizes


if __name__ == "__main__":
    main()
