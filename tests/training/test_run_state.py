"""When a training has converged, and which of its states is the best."""

from dataclasses import asdict

import pytest

from pipeline.training.run_state import Best


def evaluated(values: list[float], metric: str = "accuracy") -> tuple[Best, list[int]]:
    """After evaluations at steps 0, 10, ...; and how many in a row had brought nothing, after each."""
    best, counts = Best(), []
    for index, value in enumerate(values):
        figures = {"log_loss": 1.0, metric: value}
        if best.count(metric, 10 * index, figures):
            best.replace(metric, 10 * index, figures, {})
        counts.append(best.evaluations_since)
    return best, counts


def test_a_training_that_still_makes_up_for_its_first_steps_has_not_converged() -> None:
    """As was seen on Banking77: the fitted start is the best for long, and each evaluation is better than the last."""
    best, counts = evaluated([0.910, 0.876, 0.884, 0.900, 0.906])
    assert (best.step, best.value, counts) == (0, 0.910, [0, 0, 0, 0, 0])
    best, counts = evaluated([0.910, 0.876, 0.884, 0.900, 0.906, 0.906, 0.911])
    assert (best.step, counts[-2:]) == (60, [1, 0])


def test_one_that_gets_no_better_runs_out_of_patience() -> None:
    best, counts = evaluated([0.5, 0.7, 0.6, 0.7])
    assert (best.step, counts) == (10, [0, 0, 1, 2])
    assert evaluated([0.5, 0.7, 0.6], "log_loss")[0].step == 0


def test_of_equally_good_states_the_one_of_the_least_log_loss_is_the_best() -> None:
    best = Best()
    best.replace("accuracy", 0, {"accuracy": 0.9, "log_loss": 0.5}, {})
    assert not best.count("accuracy", 10, {"accuracy": 0.9, "log_loss": 0.5})
    assert best.count("accuracy", 20, {"accuracy": 0.9, "log_loss": 0.4}) and best.evaluations_since == 1
    assert not best.count("accuracy", 30, {"accuracy": 0.8, "log_loss": 0.1})


@pytest.mark.parametrize(("step", "expected"), [(0, None), (30, 0.8)])
def test_a_checkpoint_that_did_not_tell_the_start_from_steps_is_taken_up(step: int, expected: float | None) -> None:
    kept = {key: value for key, value in asdict(Best(0.8, step)).items() if key != "value_of_steps"}
    assert Best(**kept).value_of_steps == expected
