"""The benchmark of whole trainings: two of them on a tiny model, and what is made of their curves."""

import time
from pathlib import Path

import pytest

from benchmarks.to_converged import Training, rows, trained
from pipeline.comparison.config import Group, cell_config, load_comparison
from tests.support.tiny_comparison import write_comparison

TUNED, PROBE = (Group("news", "tiny", method, "all") for method in ("lt_prompt", "probe"))


def test_seconds_are_those_of_the_processor_without_evaluations(tmp_path: Path) -> None:
    comparison = load_comparison(write_comparison(tmp_path, methods={"lt_prompt": {}, "probe": {}}))
    for group, steps in ((PROBE, []), (TUNED, [2, 4])):
        started = time.process_time()
        training = trained(group, cell_config(comparison, group, {}, 0))
        assert [point["step"] for point in training.curve] == [0, *steps]
        assert training.steps == (4 if steps else 0) and training.capped == bool(steps)
        in_steps = training.curve[-1]["seconds"]
        assert (in_steps > 0) == bool(steps) and in_steps < time.process_time() - started
        # All that this process did before counts as the start of the first training in it.
        assert started < training.start_seconds < time.process_time() - in_steps


def test_seconds_until_its_own_best_and_until_that_of_the_best_method() -> None:
    curve = [{"step": step, "seconds": step / 2, "value": value} for step, value in ((0, 0.5), (20, 0.797), (40, 0.8))]
    good = Training(TUNED, curve, 60, True, 30.0)
    quick = Training(PROBE, [{"step": 0, "seconds": 0.0, "value": 0.7}], 0, False, 5.0)
    first, second = rows([good, quick], 0.99)
    assert (first["converged"], first["own_seconds"], first["best_seconds"]) == (0.8, 40.0, 40.0)
    assert (second["converged"], second["own_seconds"], second["best_seconds"]) == (0.7, 5.0, None)
    assert first["capped"] and first["step_seconds"] == pytest.approx(20 / 60, abs=0.005)
