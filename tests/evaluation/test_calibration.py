"""Temperature scaling against a grid, on known scores, and its way from evaluate to predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.evaluation.calibration import FILE, HIGHEST, LOWEST, calibrated_metrics, fit_temperature
from pipeline.evaluation.metrics import predictions, tempered_softmax
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from tests.support.tiny_run import tiny_run


def drawn(seed: int, texts: int, labels: int, sureness: float) -> tuple[NDArray, NDArray]:
    """Scores whose honest temperature is `sureness`: the truth is drawn from the softmax of scores / sureness."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(texts, labels)) * 2
    truth = np.array([generator.choice(labels, p=row) for row in tempered_softmax(scores)])
    return (scores * sureness).astype(np.float32), truth


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), labels=st.integers(2, 6), sureness=st.floats(0.2, 8))
def test_no_temperature_of_a_grid_is_better(seed: int, labels: int, sureness: float) -> None:
    scores, truth = drawn(seed, 60, labels, sureness)
    found = fit_temperature(scores, truth).temperature
    rows = np.arange(len(truth))
    losses = [
        -logs[rows, truth].sum() - logs.mean()  # the texts, and one with any label
        for temperature in [found, *np.geomspace(LOWEST, HIGHEST, 200)]
        for logs in [np.log(tempered_softmax(scores, temperature) + 1e-300)]
    ]
    assert losses[0] <= min(losses) + 1e-9


@pytest.mark.parametrize("sureness", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_scores_is_found(sureness: float) -> None:
    scores, truth = drawn(0, 5_000, 3, sureness)
    calibration = fit_temperature(scores, truth)
    assert calibration.temperature == pytest.approx(sureness, rel=0.1) and calibration.texts == 5_000
    figures = calibrated_metrics(scores, truth, calibration)
    assert figures["ece"] < 0.03
    assert figures["log_loss"] <= log_loss(truth, tempered_softmax(scores)) + 1e-9


@pytest.mark.parametrize("texts", [3, 12, 300])
def test_labels_stay_and_a_faultless_split_is_not_taken_for_certainty(texts: int) -> None:
    """The doubt that is left is that of one text more, with a label drawn at random."""
    truth = np.arange(texts) % 3
    scores = np.eye(3, dtype=np.float32)[truth]
    probabilities = tempered_softmax(scores, fit_temperature(scores, truth).temperature)
    assert 1 - probabilities.max(axis=1) == pytest.approx(2 / 3 / (texts + 1), rel=1e-3)
    assert predictions(probabilities).tolist() == truth.tolist()


def test_evaluate_fits_it_and_predict_uses_it(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    with pytest.raises(UserError, match=r"is not calibrated .* run evaluate with a validation split"):
        LoadedAdapter.load(config.run.dir, "cpu", calibrated=True)
    metrics = evaluate(config)
    temperature = metrics["test"]["calibrated"]["temperature"]
    assert metrics["validation"]["calibrated"]["log_loss"] <= metrics["validation"]["log_loss"]
    assert metrics["test"]["calibrated"]["ece"] != metrics["test"]["ece"]
    file = config.run_dir.adapter / FILE
    written = json.loads(file.read_text())
    assert written == {"temperature": temperature, "texts": 6, "sha256": written["sha256"]}
    file.unlink()
    assert evaluate(config) == metrics and file.is_file(), "a current evaluation brings it back"
    file.write_text("{")
    assert evaluate(config) == metrics and json.loads(file.read_text()) == written, "and mends it"

    (tmp_path / "texts.txt").write_text("a goal\nprofit rose\n")
    lines = {}
    for calibrated in (False, True):
        predict(config.run.dir, str(tmp_path / "texts.txt"), str(tmp_path / "out"), device="cpu", calibrated=calibrated)
        lines[calibrated] = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    for plain, tempered in zip(lines[False], lines[True], strict=True):
        assert plain["scores"] == tempered["scores"] and plain["label"] == tempered["label"]
        expected = tempered_softmax(np.array([list(plain["scores"].values())]), temperature)[0]
        assert list(tempered["probabilities"].values()) == pytest.approx(expected.tolist(), rel=1e-3)
        assert plain["probabilities"] != tempered["probabilities"]
    file.write_text('{"temperature": -1, "texts": 6}')
    with pytest.raises(UserError, match="is damaged"):
        LoadedAdapter.load(config.run.dir, "cpu", calibrated=True)
