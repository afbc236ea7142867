"""What the parameters of the classifier become in a run's config."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import LTuningClassifier
from pipeline.classifier.parameters import run_config
from pipeline.config import RunConfig, load_config
from pipeline.core.errors import UserError
from pipeline.training.config import TrainConfig
from tests.test_imports import REPOSITORY

FILES = {"train": Path("train.parquet")}


def config(files: dict[str, Path] = FILES, **parameters: Any) -> RunConfig:
    return run_config(LTuningClassifier(**parameters).get_params(), Path("run"), files, 1600, pairs=False)


def test_minilm_is_tuned_as_the_csv_recipe_does() -> None:
    recipe = load_config(REPOSITORY / "launch/recipes/csv.yaml", ["data.max_length=256"])
    mine = config()
    assert mine.method == recipe.method and mine.labels == recipe.labels and mine.backbone == recipe.backbone
    assert mine.data.split is None, "all texts are trained on"
    free = {"eval_every", "save_every", "best_metric", "preemption_signals"}
    assert mine.train.model_dump(exclude=free) == recipe.train.model_dump(exclude=free)


@pytest.mark.parametrize(
    "parameters", [{"backbone": "some/decoder"}, {"method": "prefix"}, {"overrides": {"method.rank": 4}}]
)
def test_all_else_has_the_defaults_of_the_config(parameters: dict[str, Any]) -> None:
    found, usual = config(**parameters), TrainConfig()
    for name in ("epochs", "max_steps", "batch_size", "learning_rate", "best_metric"):
        assert getattr(found.train, name) == getattr(usual, name)
    assert found.data.split == 0.1
    assert found.train.eval_every == 30, "ten times in three epochs of 100 steps"


def test_a_seed_is_not_left_open() -> None:
    with pytest.raises(UserError, match=r"'run\.seed'"):
        config(seed=None)


def test_a_hypothesis_is_lost_to_no_other() -> None:
    assert config(hypotheses={1: "One.", "2": "Two."}).labels.texts == {"1": "One.", "2": "Two."}
    with pytest.raises(UserError, match="hypotheses names the label '1' twice"):
        config(hypotheses={1: "One.", "1": "Another."})


def test_what_is_given_has_precedence() -> None:
    assert config(learning_rate=1e-4, validation_split=0.2).train.learning_rate == 1e-4
    assert config(validation_split=0.2).data.split == 0.2
    assert config({**FILES, "validation": Path("v.parquet")}, validation_split=0.2).data.split is None
    for given in ({"epochs": 5}, {"overrides": {"train.epochs": 5}}):
        assert (config(**given).train.max_steps, config(**given).train.epochs) == (None, 5)
    assert config(epochs=5, max_steps=7).train.max_steps == 7
    assert config(overrides={"train.eval_every": 3}).train.eval_every == 3


def test_a_section_of_overrides_undoes_nothing_else() -> None:
    mine = config(batch_size=4, overrides={"train": {"epochs": 5}, "method": {"name": "prefix"}})
    same = config(batch_size=4, overrides={"train.epochs": 5, "method.name": "prefix"})
    assert mine == same and mine.train.batch_size == 4
    # In another order of names each label would be answered as another one.
    with pytest.raises(UserError, match=r"'labels\.names' is what fit itself gives"):
        config(overrides={"labels": {"names": ["b", "a"]}})
    with pytest.raises(UserError, match="overrides: 3 is not the name of a config key"):
        config(overrides={3: 1})


def test_what_fit_does_not_read_is_refused_unless_the_run_is_kept_for_who_does(tmp_path: Path) -> None:
    overrides = {"evaluate": {"splits": ["train"], "batch_size": 8}}
    with pytest.raises(UserError, match=r"'evaluate\.splits' is for `ltune evaluate`"):
        config(overrides=overrides)
    assert config(overrides=overrides, run_dir=tmp_path / "run").evaluate.splits == ["train"]
