"""Cells of a data set are judged on the same texts and labels by the same metric; all else may differ."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.config import load_comparison
from pipeline.core.errors import UserError
from tests.support.tiny_comparison import write_comparison

PROBE = "in cell news/tiny/probe"
AGAIN = "at another point of its grid"
NAMES = ["business", "science", "sport"]


def methods(**after: dict[str, Any]) -> dict[str, Any]:
    return {"grid": {}, "methods": {"probe": {}, "after": {"method": {"name": "lt_prompt"}, **after}}}


def grid(**values: list[Any]) -> dict[str, Any]:
    return {"grid": {key.replace("__", "."): listed for key, listed in values.items()}, "methods": {"prompt": {}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (methods(train={"best_metric": "macro_f1"}), f"train.best_metric is 'macro_f1', but 'accuracy' {PROBE}"),
        (methods(data={"test_limit": 8}), f"data.test_limit is 8, but null {PROBE}"),
        (methods(data={"validation_limit": 4}), f"data.validation_limit is 4, but null {PROBE}"),
        (methods(data={"test": "other.tsv"}), "data.test is 'other.tsv', but '"),
        (methods(data={"validation": None, "split": 0.2}), "data.validation is null, but '"),
        (methods(data={"label": "topic"}), f"data.label is 'topic', but 'label' {PROBE}"),
        (methods(data={"text_pair": "other"}), f"data.text_pair is 'other', but null {PROBE}"),
        (methods(data={"quoting": True}), f"data.quoting is True, but null {PROBE}"),
        (methods(labels={"names": NAMES}), f"labels.names is {NAMES!r}, but null {PROBE}"),
        (methods(labels={"names": [f"label {n}" for n in range(99)]}), f"…, but null {PROBE}"),
        (grid(train__best_metric=["accuracy", "macro_f1"]), f"train.best_metric is 'macro_f1', but 'accuracy' {AGAIN}"),
        (grid(data__validation_limit=[4, 6]), f"data.validation_limit is 6, but 4 {AGAIN}"),
    ],
)
def test_what_cells_are_judged_on_is_the_same(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as raised:
        load_comparison(write_comparison(tmp_path, **changes))
    message = str(raised.value)
    assert words in message and message.startswith("cell news/tiny/") and "\n" not in message
    assert message.endswith("so give it in base or datasets.news alone")


def test_a_backbone_may_not_change_it_either(tmp_path: Path) -> None:
    overrides = ["backbones.small={backbone: {name_or_path: x}, data: {test_limit: 5}}"]
    with pytest.raises(
        UserError, match=r"^cell news/small/lt_prompt: data.test_limit is 5, but null in cell news/tiny/"
    ):
        load_comparison(write_comparison(tmp_path), overrides)


def test_a_grid_of_one_value_reaches_only_methods_that_take_steps(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, grid={"data.validation_limit": [4]}, methods={"prompt": {}, "lt_prompt": {}})
    load_comparison(file)
    with pytest.raises(UserError, match=r"data.validation_limit is null, but 4 in cell news/tiny/prompt"):
        load_comparison(file, ["methods.probe={}"])


def test_shares_of_the_training_texts_are_of_the_same_texts(tmp_path: Path) -> None:
    data = {"train": "all.tsv", "split": [0.1, 0.2]}
    changes = {"datasets": {"news": {"data": data}}, "grid": {}}
    for own, words in (({"train": "more.tsv"}, "data.train is 'more.tsv'"), ({"split": [0.1, 0.1]}, "data.split is")):
        given = methods(data=own)["methods"]
        file = write_comparison(tmp_path, **changes, methods=given)
        with pytest.raises(UserError, match=f"cell news/tiny/after: {words}"):
            load_comparison(file)
        if "split" in own:  # The validation texts are drawn first.
            load_comparison(file, ["split=validation"])


@pytest.mark.parametrize(
    "changes",
    [
        methods(data={"max_length": 32, "template": "News: {text}", "chat": False, "special_tokens": True}),
        methods(data={"unlabelled": "more.tsv", "train_per_label": 2, "workers": 1}),
        methods(data={"train": "noisy.tsv"}),
        methods(train={"max_steps": 0}, labels={"template": "{label}", "texts": {"sport": "of sport"}}),
        methods(backbone={"layers": 1, "pooling": "mean"}),
        methods(data={"test_limit": 8}) | {"split": "validation"},
        grid(labels__template=["{label}", "on {label}"], train__batch_size=[2, 4], data__max_length=[16, 32]),
        grid(train__learning_rate=[0.1, 0.2]) | {"sizes": [2, 4, "all"]},
        grid(data__test_limit=[4, 6]) | {"methods": {"probe": {}, "majority": {}}},
    ],
)
def test_what_is_a_cells_own_may_differ(tmp_path: Path, changes: dict[str, Any]) -> None:
    load_comparison(write_comparison(tmp_path, **changes))


def test_data_sets_have_metrics_and_texts_of_their_own(tmp_path: Path) -> None:
    file = write_comparison(tmp_path)
    own = "{data: {train: embedded, validation: embedded, test: embedded, test_limit: 9}, train: {best_metric: mcc}}"
    assert len(load_comparison(file, [f"datasets.town={own}"]).datasets) == 2


def test_a_file_may_be_named_in_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_comparison(write_comparison(tmp_path, **methods(data={"test": f".{os.sep}test.tsv"})))
