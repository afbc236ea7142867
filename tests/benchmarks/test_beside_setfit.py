"""The benchmark beside SetFit: it takes a run's own texts and answers, and compares the answers text by text."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from benchmarks.beside_setfit import Case, case_of, difference, setfit_answers
from pipeline.classifier.parameters import MINILM
from pipeline.core.files import read_json
from pipeline.stages.evaluate import evaluate
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = tiny_run(tmp_path_factory.mktemp("setfit"))
    evaluate(config)
    (config.run_dir.path / "config.yaml").write_text(config.to_yaml())
    found = case_of(config.run_dir.path)
    measured = read_json(config.run_dir.metrics_file)["test"]
    assert float((found.answers == found.truth).mean()) == pytest.approx(measured["accuracy"])
    assert len(found.test_texts) == measured["n"] and len(found.train_texts) == len(found.train_labels)
    return found


def test_the_difference_is_the_mean_of_the_runs(case: Case) -> None:
    right, wrong = case.truth, (case.truth + 1) % len(case.labels)
    all_right, all_wrong = replace(case, answers=right), replace(case, answers=wrong)
    assert difference([all_right], [wrong]) == {"difference": 1.0, "low": 1.0, "high": 1.0}
    assert difference([all_right, all_wrong], [right, right])["difference"] == -0.5


def test_pairs_are_refused(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, pairs=True)
    (config.run_dir.path / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(SystemExit, match="SetFit reads single texts, not pairs"):
        case_of(config.run_dir.path)


@pytest.mark.skipif(find_spec("setfit") is None, reason="setfit is not installed")
def test_setfit_learns_the_training_texts(case: Case) -> None:
    unset_hf_deepspeed_config()  # evaluate has announced ZeRO-3, and SetFit's model would be partitioned
    backbone = case.config.backbone.model_copy(update={"name_or_path": MINILM})
    minilm = replace(case, config=case.config.model_copy(update={"backbone": backbone}), test_texts=case.train_texts)
    assert np.mean(setfit_answers(minilm, 1) == case.train_labels) > 0.9
