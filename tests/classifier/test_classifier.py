"""The Python API: it trains by the stages, and behaves as scikit-learn's classifiers do.

covers classifier/__init__
covers engine/kept_adapter
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks, get_tags

from pipeline import LTuningClassifier
from pipeline.adapter.directory import load_adapter, save_adapter
from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.engine import loaded_adapter
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.engine.startup import leave
from tests.support.tiny_classifier import X, Y, tiny
from tests.support.tiny_run import TEXTS


@pytest.fixture(scope="module")
def fitted(backbone: str) -> LTuningClassifier:
    leave()
    return tiny(backbone).fit(X, Y)


def test_what_is_saved_is_what_answers(
    fitted: LTuningClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a training puts another adapter into the folder while the backbone is loaded."""
    folder = tmp_path / "adapter"
    fitted.save(folder)
    adapter, load = load_adapter(folder), loaded_adapter.frozen_backbone

    def load_slowly(*given: Any, **named: Any) -> Any:
        state = {name: tensor * 2 for name, tensor in adapter.method_state.items()}
        save_adapter(folder, state, adapter.config, adapter.labels)
        return load(*given, **named)

    monkeypatch.setattr(loaded_adapter, "frozen_backbone", load_slowly)
    found = LTuningClassifier.from_pretrained(folder)
    monkeypatch.undo()
    found.save(tmp_path / "saved")
    saved = LTuningClassifier.from_pretrained(tmp_path / "saved")
    assert np.array_equal(saved.predict_proba(X), found.predict_proba(X))


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, pipeline; assert 'torch' not in sys.modules; assert 'LTuningClassifier' in pipeline.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_answers(fitted: LTuningClassifier) -> None:
    assert fitted.classes_.tolist() == sorted(TEXTS)
    probabilities, details = fitted.predict_proba(X), fitted.details(X)
    assert probabilities.shape == (36, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert [list(each.probabilities.values()) for each in details] == probabilities.tolist()
    predicted = fitted.predict(X)
    assert predicted.tolist() == [each.label for each in details]
    assert fitted.score(X, Y) == np.mean(predicted == Y)
    assert fitted.predict([]).shape == (0,) and fitted.predict_proba([]).shape == (0, 3)


def test_it_evaluates_ten_times_whatever_a_step_holds(backbone: str, tmp_path: Path) -> None:
    keys = {"method.head": "label_aware", "train.gradient_accumulation": 3}
    tiny(backbone, run_dir=tmp_path / "run", max_steps=None, epochs=7, overrides=keys).fit(X, Y, validation=(X, Y))
    lines = map(json.loads, (tmp_path / "run" / "logs" / "metrics.jsonl").read_text().splitlines())
    # 36 texts in steps of 12: 21 steps, of which every third is followed by an evaluation.
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [3, 6, 9, 12, 15, 18, 21]


def test_it_trains_as_the_command_line_does(backbone: str, tmp_path: Path) -> None:
    """The same adapter, bit for bit, from the same texts and settings in a file; and it is left as a run directory."""
    classifier = tiny(backbone, run_dir=tmp_path / "python", seed=3).fit(X, Y)
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(X, Y, strict=True))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows)
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}/command, seed: 3}}\n"
        f"backbone: {{name_or_path: {backbone}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/train.tsv, split: 0.1, max_length: 32}}\n"
        "method: {name: lt_prefix, head: label_aware}\n"
        "train: {max_steps: 2, batch_size: 4, eval_every: 1}\n"
    )
    for command in ("preprocess", "encode-labels", "train"):
        assert main([command, "--config", f"{tmp_path}/run.yaml"]) == 0
    mine, theirs = (tmp_path / folder / "adapter/adapter.safetensors" for folder in ("python", "command"))
    assert mine.read_bytes() == theirs.read_bytes()
    assert main(["evaluate", "--config", f"{tmp_path}/python/config.yaml"]) == 0
    loaded = LTuningClassifier.from_pretrained(tmp_path / "command")
    np.testing.assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))
    before = mine.stat().st_mtime_ns
    assert clone(classifier).fit(X, Y).score(X, Y) == classifier.score(X, Y)
    assert mine.stat().st_mtime_ns == before, "a finished run is found current"
    with pytest.raises(UserError, match="was trained on other texts: choose another run_dir"):
        clone(classifier).fit(X[1:], Y[1:])
    with pytest.raises(UserError, match=r"train\.learning_rate"):
        clone(classifier).set_params(learning_rate=0.5).fit(X, Y)


def test_the_program_around_it_is_left_as_it_was(backbone: str) -> None:
    torch.use_deterministic_algorithms(False)
    before, threads, hook = dict(os.environ), torch.get_num_threads(), sys.excepthook
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny(backbone, overrides={"engine.threads": 2}).fit(X, Y)
    assert torch.equal(torch.rand(3), expected)
    assert dict(os.environ) == before and torch.get_num_threads() == threads and sys.excepthook is hook
    assert not torch.are_deterministic_algorithms_enabled() and not torch.distributed.is_initialized()


def test_a_process_group_is_not_taken_over(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="belongs to a process group"):
            tiny(backbone).fit(X, Y)
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="belongs to a process group"):
        tiny(backbone).fit(X, Y)


def test_saved_pickled_and_cloned(fitted: LTuningClassifier, backbone: str, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    fitted.save(tmp_path / "adapter")  # over an adapter
    expected = fitted.predict_proba(X)
    loaded = LTuningClassifier.from_pretrained(tmp_path / "adapter")
    for other in (loaded, pickle.loads(pickle.dumps(fitted)), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(other.predict_proba(X), expected)
        assert other.classes_.tolist() == fitted.classes_.tolist()
    mine = {name: value for name, value in fitted.get_params().items() if name in ("backbone", "method", "template")}
    assert (
        loaded.get_params()
        == LTuningClassifier(
            **mine,
            max_length=32,
            overrides={"method.head": "label_aware", "method.judge": "probe", "backbone.dtype": "float32"},
        ).get_params()
    )
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)
    renamed = fitted.with_labels(["war", "art"])
    assert renamed.classes_.tolist() == ["art", "war"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(renamed)).predict_proba(X), renamed.predict_proba(X))
    with pytest.raises(UserError, match="has the labels of its training: save the classifier that was fitted"):
        renamed.save(tmp_path / "renamed")
    (tmp_path / "diary.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "diary.txt"):
        with pytest.raises(UserError, match="is not an adapter directory: choose a new folder"):
            fitted.save(place)
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_classes_are_sorted_whatever_order_the_adapter_has(fitted: LTuningClassifier) -> None:
    """scikit-learn's metrics take the columns to be those of sorted labels."""
    classifier = fitted.with_labels(["war", "art", "peace"])
    texts, truth = ["a battle", "a painting", "a treaty"], ["war", "art", "peace"]
    details, probabilities = classifier.details(texts), classifier.predict_proba(texts)
    assert list(details[0].probabilities) == truth and classifier.classes_.tolist() == sorted(truth)
    own = [each.probabilities[label] for each, label in zip(details, truth, strict=True)]
    assert log_loss(truth, probabilities) == pytest.approx(-np.mean(np.log(own)))
    assert classifier.predict(texts).tolist() == [each.label for each in details]


def test_what_is_saved_answers_like_the_command(fitted: LTuningClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    (tmp_path / "x.txt").write_text("\n".join(X))
    arguments = ["--adapter", f"{tmp_path}/adapter", "--input", f"{tmp_path}/x.txt", "--output", f"{tmp_path}/y.jsonl"]
    assert main(["predict", *arguments]) == 0
    labels = [json.loads(line)["label"] for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert labels == fitted.predict(X).tolist()
    assert LoadedAdapter.load(tmp_path / "adapter").predict(X[:3]) == fitted.details(X[:3])


def test_search_and_pipeline(backbone: str) -> None:
    """Two settings in two folds, behind a step that changes texts; every fit is one of its own."""
    steps = make_pipeline(FunctionTransformer(lambda texts: [text.upper() for text in texts]), tiny(backbone))
    name = "ltuningclassifier__"
    grid = {f"{name}method": ["probe", "majority"], f"{name}overrides": [None]}
    search = GridSearchCV(steps, grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_[f"{name}method"] == "probe" and search.best_score_ > 1 / 3
    assert search.predict(X).shape == (36,) and search.score(X, Y) > 1 / 3
    probabilities = cross_val_predict(
        tiny(backbone, method="majority", overrides=None), X, Y, cv=2, method="predict_proba"
    )
    np.testing.assert_allclose(probabilities, 1 / 3, atol=0.05)


CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_fit_score_takes_y",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
]
"""Of scikit-learn's, those that know nothing of numbers in the place of texts."""


@pytest.mark.parametrize("name", CHECKS)
def test_checks_of_scikit_learn(name: str, monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    """check_fit_score_takes_y fits: its table of numbers becomes one of texts on its way."""

    def as_texts(table: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in np.asarray(table).round(1)]

    if name == "check_fit_score_takes_y":
        monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", lambda _, table, **__: as_texts(table))
    getattr(estimator_checks, name)("LTuningClassifier", tiny(backbone, method="majority", overrides=None))


def test_more_of_scikit_learn(fitted: LTuningClassifier) -> None:
    """What its own checks say of tables of numbers."""
    tags = get_tags(fitted)
    assert tags.input_tags.string and not tags.input_tags.two_d_array and tags.estimator_type == "classifier"
    before = fitted.get_params()
    again = clone(fitted)
    assert again.fit(X, Y) is again and again.get_params() == before
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    order = np.random.default_rng(0).permutation(len(X))
    shuffled = fitted.predict_proba([X[place] for place in order])
    np.testing.assert_allclose(shuffled, fitted.predict_proba(X)[order], atol=1e-6)


def test_it_shows_itself(fitted: LTuningClassifier) -> None:
    assert repr(LTuningClassifier()) == "LTuningClassifier()"
    assert "max_steps=2" in repr(fitted)
    page, new = fitted._repr_html_(), clone(fitted)._repr_html_()
    assert "Fitted" in page and "Not fitted" in new and "LTuningClassifier" in page


def test_bars(backbone: str, capfd: pytest.CaptureFixture[str]) -> None:
    for progress, shown in ((True, True), (False, False), (None, False)):
        tiny(backbone, progress=progress).fit(X, Y)
        assert ("train: 100%" in capfd.readouterr().err) == shown
