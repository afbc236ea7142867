"""A trained adapter under other wordings of its labels: as if it had been asked with those as other labels.

covers engine/rewordings, evaluation/rewordings
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.evaluation.rewordings import over_rewordings, wording_line
from pipeline.stages.evaluate import evaluate
from pipeline.stages.run import run
from tests.support.tiny_run import TEXTS, tiny_config, tiny_run

LABELS = sorted(TEXTS)
REWORDINGS = ["It is {label}.", {"sport": "A team has won."}, "{label}, {label}!"]
WORDED: list[dict[str, str]] = [
    {name: f"It is {name}." for name in LABELS},
    {"sport": "A team has won."},
    {name: f"{name}, {name}!" for name in LABELS},
]


@pytest.mark.parametrize("template", ["This text is about {label}.", ["{label}?", "On {label}."]], ids=["one", "two"])
def test_metrics_are_those_of_the_same_labels_under_other_words(template: Any, tmp_path: Path) -> None:
    method = {"name": "lt_prefix", "head": "label_aware", "shortlist": 2}
    config = tiny_run(tmp_path, method=method, labels={"template": template}, evaluate={"rewordings": REWORDINGS})
    metrics = evaluate(config)
    texts = pd.read_csv(tmp_path / "test.tsv", sep="\t")
    loaded = LoadedAdapter.load(config.run_dir.path, "cpu")
    found = metrics["test"]["rewordings"]
    assert found["read"] and [one["rewording"] for one in found["each"]] == REWORDINGS
    for one, words in zip(found["each"], WORDED, strict=True):
        predicted = [said.label for said in loaded.with_labels(LABELS, words).predict(texts["text"])]
        assert one["accuracy"] == accuracy_score(texts["label"], predicted)
    values = [one["macro_f1"] for one in found["each"]]
    assert found["macro_f1"] == {
        "mean": pytest.approx(sum(values) / 3),
        "worst": min(values),
        "spread": max(values) - min(values),
    }
    plain = evaluate(tiny_config(tmp_path, method=method, labels={"template": template}))
    for split, own in plain.items():
        assert metrics[split] == own | {"rewordings": metrics[split]["rewordings"]}, "the rest stays what it was"


def test_the_prior_of_a_probe_is_what_it_reads(tmp_path: Path) -> None:
    for prior, is_read in (("always", True), ("never", False)):
        config = tiny_config(
            tmp_path,
            run={"dir": str(tmp_path / prior)},
            method={"name": "probe", "prior": prior},
            evaluate={"rewordings": REWORDINGS},
        )
        found = run(config)["test"]["rewordings"]
        assert found["read"] == is_read and ("each" in found) == is_read
    assert json.loads(config.run_dir.metrics_file.read_text())["test"]["rewordings"] == {"read": False}
    assert "no rewording changes a score" in wording_line(found)


@pytest.mark.parametrize(
    ("rewording", "fault"),
    [
        ("This text is about {label}.", "the labels were trained with these hypotheses"),
        ({"sports": "On sport."}, r"'sports', which is not a label \(nearest: 'sport'\)"),
        ({"sport": "This text is about science."}, "have the same hypothesis"),
        ({"sport": "a very long hypothesis " * 3}, "this adapter .* takes at most"),
        ({"sport": "On sport.", " sport": "A match."}, "'sport' is named twice"),  # one of them would be lost
        ({"sport": " "}, "the text of 'sport' is empty"),
    ],
)
def test_rewordings_that_do_not_fit_are_refused(rewording: Any, fault: str, tmp_path: Path) -> None:
    method = {"name": "lt_prefix", "pooling": "scores", "head": "label_aware"}
    config = tiny_run(tmp_path, method=method, evaluate={"rewordings": [rewording]})
    with pytest.raises(UserError, match=fault) as error:
        evaluate(config)
    assert "\n" not in str(error.value)
    assert not config.run_dir.metrics_file.exists()


def test_a_run_refuses_them_before_it_trains(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method={"name": "probe"}, evaluate={"rewordings": [{"sports": "On sport."}]})
    with pytest.raises(UserError, match=r"^evaluate\.rewordings, \{'sports': 'On sport\.'\}: .* is not a label"):
        run(config)
    assert config.run_dir.labels.exists() and not config.run_dir.adapter.exists()


def test_over_rewordings_by_hand() -> None:
    under = [{"accuracy": 0.5, "macro_f1": 0.25, "mcc": 0.0}, {"accuracy": 1.0, "macro_f1": 1.0, "mcc": 1.0}]
    found = over_rewordings(["a", "b"], under)
    assert found["accuracy"] == {"mean": 0.75, "worst": 0.5, "spread": 0.5}
    assert wording_line(found).startswith("over 2 rewordings of the labels: accuracy 0.7500 (worst 0.5000)")
