"""Processor seconds of a whole training until a method is as good as it gets, and as good as the best one gets.

    python benchmarks/to_converged.py --config launch/recipes/compare/to_converged.yaml
    python benchmarks/to_converged.py --config FILE --json backbones.smollm2.backbone.name_or_path=FOLDER

Every method of a comparison is trained in a process of its own, one after the other, with the first seed and no grid,
until it has converged or reached its cap. Other work on the machine lengthens processor time little. Per data set and
method:

converged        validation accuracy of the best evaluation; `capped`: steps ended before patience did
start_seconds    all before the first step: imports, tokens, label and text states, what is fitted first
step_seconds     of one step, on average
own_seconds      from the start of the process until an evaluation had `--share` of `converged`
best_seconds     the same, of the highest `converged` on the data set; null: it was never there

None counts evaluations, which are as many as the recipe says.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.comparison.config import ComparisonConfig, Group, cell_config, groups, load_comparison
from pipeline.comparison.curve import Curve, read_curve
from pipeline.config import RunConfig


@dataclass(frozen=True)
class Training:
    """What one run took; its curve counts processor seconds of steps."""

    group: Group
    curve: Curve
    steps: int
    capped: bool
    start_seconds: float

    @property
    def converged(self) -> float:
        return max(point["value"] for point in self.curve)

    def seconds_until(self, accuracy: float) -> float | None:
        """Seconds of the process, without evaluations; None where it never was so good."""
        reached = (point["seconds"] for point in self.curve if point["value"] >= accuracy)
        return next((self.start_seconds + seconds for seconds in reached), None)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:  # nothing is found there that an earlier training made
        comparison = load_comparison(options.config, [*options.overrides, f"dir={folder}/comparison"])
        for _, trainings in groupby(every_training(comparison), lambda training: training.group.dataset):
            for row in rows(list(trainings), options.share):
                shown = "  ".join(f"{name} {value}" for name, value in row.items() if name != "curve")
                print(json.dumps(row) if options.json else shown, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="as of `compare`")
    parser.add_argument("--share", type=float, default=0.99, help="of an accuracy, that counts as reaching it")
    parser.add_argument("--json", action="store_true", help="one object a line, with the curves")
    parser.add_argument("overrides", nargs="*", help="keys of the comparison, as KEY=VALUE")
    return parser.parse_args()


def every_training(comparison: ComparisonConfig) -> Iterator[Training]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        for group in groups(comparison):
            config = cell_config(comparison, group, {}, comparison.seeds[0])
            yield processes.submit(trained, group, config).result()


def trained(group: Group, config: RunConfig) -> Training:
    """Runs the stages until training has ended, in this process, which has done nothing before."""
    from pipeline.engine.backbone import backbone_of
    from pipeline.stages.encode_labels import encode_labels
    from pipeline.stages.encode_texts import encode_texts
    from pipeline.stages.preprocess import preprocess
    from pipeline.stages.train import train

    backbone = backbone_of(config.backbone, config.data)
    # The loop's own clock leaves evaluations out of its steps: it counts processor time here.
    with patch.object(time, "perf_counter", time.process_time), evaluations_timed() as evaluations:
        for stage in (preprocess, encode_labels, encode_texts):
            stage(config, backbone)
        summary = train(config, backbone, overwrite=True)
        whole = time.process_time()
    curve = read_curve(config.run_dir.metrics_log, "accuracy") if summary["steps"] else []
    in_steps = curve[-1]["seconds"] if curve else 0.0
    if not curve:
        curve = [{"step": 0, "seconds": 0.0, "value": summary["validation"]["accuracy"]}]
    start = whole - in_steps - sum(evaluations)
    return Training(group, curve, summary["steps"], not summary["converged"], start)


@contextmanager
def evaluations_timed() -> Iterator[list[float]]:
    """Processor seconds of each evaluation on validation while this is open."""
    from pipeline.training import loop

    seconds: list[float] = []
    score: Callable[..., Any] = loop.score

    def timed(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        scores = score(*given, **named)
        seconds.append(time.process_time() - started)
        return scores

    with patch.object(loop, "score", timed):
        yield seconds


def rows(trainings: list[Training], share: float) -> Iterator[dict[str, Any]]:
    """One per method of a data set."""
    best = max(training.converged for training in trainings)
    for training in trainings:
        own, of_best = (training.seconds_until(share * value) for value in (training.converged, best))
        yield {
            "dataset": training.group.dataset,
            "method": training.group.method,
            "converged": round(training.converged, 3),
            "capped": training.capped,
            "steps": training.steps,
            "start_seconds": round(training.start_seconds, 1),
            "step_seconds": round(training.curve[-1]["seconds"] / max(1, training.steps), 2),
            "own_seconds": None if own is None else round(own, 1),
            "best_seconds": None if of_best is None else round(of_best, 1),
            "curve": training.curve,
        }


if __name__ == "__main__":
    main()
