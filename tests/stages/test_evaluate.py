"""The evaluate stage on a tiny run: metrics, predictions, staleness, refusals, and two ranks."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score

from pipeline.adapter.directory import load_adapter, save_adapter
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.data.config import LabelsConfig
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from tests.support.processes import launch, run_script
from tests.support.tiny_run import TEXTS, tiny_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    run = tiny_run(tmp_path_factory.mktemp("evaluate"))
    evaluate(run)
    return run


def test_metrics_and_predictions_agree(config: RunConfig) -> None:
    metrics = json.loads(config.run_dir.metrics_file.read_text())
    assert set(metrics) == {"validation", "test"}
    table = pq.read_table(config.run_dir.predictions_file).to_pandas()
    assert table.columns.tolist() == [
        "split",
        "row",
        "label",
        "prediction",
        "score/business",
        "score/science",
        "score/sport",
    ]
    for split, count in (("validation", 6), ("test", 9)):
        rows = table[table.split == split]
        assert metrics[split]["n"] == len(rows) == count
        assert metrics[split]["accuracy"] == accuracy_score(rows.label, rows.prediction)
        assert rows.row.tolist() == list(range(1, count + 1))
        # The training split has one text of sport more than of the others.
        assert metrics[split]["majority"]["label"] == "sport"
        assert metrics[split]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert {"macro_f1", "weighted_f1", "mcc", "log_loss", "ece", "per_class", "confusion_matrix"} <= set(
        metrics["test"]
    )
    scores = table[[f"score/{name}" for name in sorted(TEXTS)]].to_numpy()
    assert np.array(sorted(TEXTS))[scores.argmax(1)].tolist() == table.prediction.tolist()
    assert len(np.unique(scores)) == scores.size, "every pair has a score of its own"


@pytest.mark.parametrize(
    "backbone", [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"}], ids=["fp32", "bf16", "int8"]
)
def test_the_classifier_gives_the_same_scores(config: RunConfig, backbone: dict[str, str], tmp_path: Path) -> None:
    """Inside a ZeRO-3 engine and whole on one device."""
    if backbone:
        config = tiny_run(tmp_path, backbone=backbone)
        evaluate(config)
    table = pq.read_table(config.run_dir.predictions_file).to_pandas()
    rows = table[table.split == "test"]
    texts = [f"{text} test" for texts in TEXTS.values() for text in texts[:3]]
    predictions = LoadedAdapter.load(config.run.dir, "cpu").predict(texts)
    assert [prediction.label for prediction in predictions] == rows.prediction.tolist()
    tolerance = 0.05 if backbone else 1e-5  # bf16 rounds to three digits, and the batches differ
    for name in TEXTS:
        mine = [prediction.scores[name] for prediction in predictions]
        np.testing.assert_allclose(mine, rows[f"score/{name}"], rtol=tolerance, atol=tolerance)


def test_the_card_has_the_figures(config: RunConfig) -> None:
    card = (config.run_dir.adapter / "README.md").read_text()
    assert "| test | 9 |" in card and "| validation, majority baseline (sport) | 6 | 0.3333 |" in card


def test_a_current_evaluation_is_left_alone_and_a_stale_one_made_again(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    before = config.run_dir.predictions_file.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, "pipeline"):
        first = evaluate(config)
    assert "is current" in caplog.text and config.run_dir.predictions_file.stat().st_mtime_ns == before
    assert f"training has not ended: '{config.run_dir.adapter}' is what was best" in caplog.text
    adapter = load_adapter(config.run_dir.adapter)
    try:
        changed = {name: tensor * 2 for name, tensor in adapter.method_state.items()}
        save_adapter(config.run_dir.adapter, changed, config.adapter_config(), adapter.labels)
        with caplog.at_level(logging.INFO, "pipeline"):
            second = evaluate(config)
        assert "is stale (adapter was" in caplog.text and second["test"]["log_loss"] != first["test"]["log_loss"]
    finally:
        save_adapter(config.run_dir.adapter, adapter.method_state, config.adapter_config(), adapter.labels)
        assert evaluate(config) == first


def test_scores_that_are_not_finite_end_it_and_leave_the_old_figures(config: RunConfig) -> None:
    adapter = load_adapter(config.run_dir.adapter)
    before = config.run_dir.metrics_file.read_bytes()
    try:
        broken = {name: torch.full_like(tensor, 3e38) for name, tensor in adapter.method_state.items()}
        save_adapter(config.run_dir.adapter, broken, config.adapter_config(), adapter.labels)
        with pytest.raises(UserError, match="validation split: 6 of 6 rows have NaN"):
            evaluate(config)
        assert config.run_dir.metrics_file.read_bytes() == before
    finally:
        save_adapter(config.run_dir.adapter, adapter.method_state, config.adapter_config(), adapter.labels)


def test_an_adapter_trained_otherwise_is_refused_by_part(config: RunConfig) -> None:
    other = config.model_copy(update={"method": config.method.model_copy(update={"dropout": 0.1})})
    with pytest.raises(UserError, match=r"trained otherwise: method\.dropout was '0.0', now '0.1'; run train again"):
        evaluate(other)
    unevaluable = config.model_copy(update={"run": config.run.model_copy(update={"dir": config.run.dir + "-none"})})
    with pytest.raises(UserError, match=r"manifest\.json' does not exist"):
        evaluate(unevaluable)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"template": ["This text is about {label}."]}, None),
        ({"template": {"This text is about {label}.": 3}}, None),
        ({"texts": {"sport": "This text is about sport."}}, None),
        ({"template": "On {label}."}, "labels.template was "),
        ({"texts": {"sport": "On sport."}}, r"trained otherwise: the hypothesis of 'sport' was "),
    ],
)
def test_labels_that_are_worded_alike_are_the_same(
    config: RunConfig, labels: dict[str, Any], words: str | None
) -> None:
    """To `train` the run is finished with them too."""
    other = config.model_copy(update={"labels": LabelsConfig(**labels)})
    if words is None:
        assert evaluate(other) == evaluate(config)
    else:
        with pytest.raises(UserError, match=f"{words}.*; run train again \\(--overwrite\\)"):
            evaluate(other)


def test_another_attention_kernel_is_no_other_training(config: RunConfig) -> None:
    """To `train` the run is finished with it too, so that `evaluate` must not send back to it."""
    first = evaluate(config)
    other = config.model_copy(update={"backbone": config.backbone.model_copy(update={"attention": "eager"})})
    assert evaluate(other) == first
    (config.run_dir.evaluation / "fingerprint.json").unlink()
    assert evaluate(other)["test"]["log_loss"] == pytest.approx(first["test"]["log_loss"], rel=1e-4)


def two_ranks(folder: Path) -> list[int]:
    return launch(["evaluate", "--config", str(folder / "config.yaml")], folder / "two-ranks.log", world=2)


def test_two_ranks_under_zero3_give_what_one_gives(config: RunConfig) -> None:
    """Under other words for the labels too. What is said of the scores is said once."""
    validation = Path(str(config.data.validation))
    rows = [line for line in validation.read_text().splitlines() if not line.endswith("science")]  # which is noted
    validation.write_text("\n".join(rows) + "\n")
    preprocess(config)
    asked = config.evaluate.model_copy(update={"rewordings": ["It is {label}.", {"sport": "A team has won."}]})
    config = config.model_copy(update={"evaluate": asked})
    alone = evaluate(config)["test"]["rewordings"]
    expected = pq.read_table(config.run_dir.predictions_file)
    (config.run_dir.evaluation / "fingerprint.json").unlink()
    folder = Path(config.run.dir).parent
    (folder / "config.yaml").write_text(config.to_yaml())
    statuses = run_script("tests.stages.test_evaluate:two_ranks", folder, 300)
    said = (folder / "two-ranks.log").read_text()
    assert statuses == [0, 0], said
    notes = json.loads(config.run_dir.metrics_file.read_text())["validation"]["notes"]
    assert notes and all(said.count(f"validation: {note}") == 1 for note in notes)
    assert (config.run_dir.evaluation / "fingerprint.json").is_file(), "it was made again"
    found = pq.read_table(config.run_dir.predictions_file)
    assert found.select(["split", "row", "label"]) == expected.select(["split", "row", "label"])
    for name in TEXTS:
        column = f"score/{name}"
        np.testing.assert_allclose(found[column].to_numpy(), expected[column].to_numpy(), rtol=1e-5, atol=1e-6)
    assert json.loads(config.run_dir.metrics_file.read_text())["test"]["rewordings"] == alone and alone["read"]
