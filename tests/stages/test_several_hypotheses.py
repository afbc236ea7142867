"""Labels with several hypotheses: every stage, an adapter directory, other labels and a server score them alike.

covers data/hypotheses, adapter/label_states
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM

from pipeline.adapter.directory import load_adapter
from pipeline.adapter.label_states import NAMES_FILE, WEIGHTS_OF_HYPOTHESES, LabelStates
from pipeline.config import RunConfig, parse_config
from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.estimate.case import rows_per_text
from pipeline.export.label_injections import save_label_injections
from pipeline.methods import AnyMethodConfig
from pipeline.serving.together import Job, score_together
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.report import report
from pipeline.stages.run import run
from pipeline.training.config import TrainConfig
from tests.support.tiny import save_tiny
from tests.support.tiny_run import TEXTS, tiny_config, tiny_facts, tiny_run

LABELS = sorted(TEXTS)
TEMPLATES = {"This text is about {label}.": 3, "{label}": 1}
SEVERAL = {"template": TEMPLATES, "texts": {"sport": ["Games and matches.", "A team has won.", "On sport."]}}
QUICK = {"max_steps": 4, "batch_size": 4, "learning_rate": 0.05, "eval_every": 2, "save_every": 2}
TUNED = {"head": "label_aware", "shortlist": None}


@pytest.mark.parametrize(
    "method",
    [{"name": "zero_shot"}, {"name": "probe", "prior": "always"}, {"name": "lt_prefix"}],
    ids=lambda keys: keys["name"],
)
def test_all_that_scores_a_text_gives_the_same(method: dict[str, Any], tmp_path: Path) -> None:
    save_tiny(tmp_path / "backbone", "llama_gqa", AutoModelForCausalLM)
    config = tiny_config(tmp_path, labels=SEVERAL, method=method, train=QUICK)
    run(config)
    table = pd.read_parquet(config.run_dir.predictions_file)
    expected = table[table["split"] == "test"][[f"score/{label}" for label in LABELS]].to_numpy()
    texts = pd.read_csv(tmp_path / "test.tsv", sep="\t")["text"].tolist()
    loaded = LoadedAdapter.load(config.run_dir.path, "cpu")
    assert loaded.adapter.labels.by_label["business"] == {"This text is about business.": 0.75, "business": 0.25}
    [together], _ = score_together([Job(loaded, loaded.rows(texts))], 16384)
    for found in ([list(one.scores.values()) for one in loaded.predict(texts)], together):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-4)
    assert "This text is about business.; business" in (config.run_dir.adapter / "README.md").read_text()
    report(config.run_dir.path)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_run(tmp_path_factory.mktemp("several"), labels=SEVERAL, method={"name": "lt_prefix"} | TUNED)


def test_a_label_scores_the_mean_of_its_hypotheses_alone(several: RunConfig) -> None:
    loaded = LoadedAdapter.load(several.run_dir.path)
    found = loaded.predict(["a goal", "shares fell on monday"])
    expected = [dict.fromkeys(LABELS, 0.0) for _ in found]
    for label, own in loaded.adapter.labels.by_label.items():
        for text, weight in own.items():
            alone = loaded.with_labels(LABELS, {label: text}).predict(["a goal", "shares fell on monday"])
            for sums, one in zip(expected, alone, strict=True):
                sums[label] += weight * one.scores[label]
    for one, sums in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(sums, abs=1e-5)
    again = loaded.with_labels([*LABELS, "war"], {"war": ["A text on war.", "War and peace."]})
    war = [loaded.with_labels(["war", "art"], {"war": text}) for text in ("A text on war.", "War and peace.")]
    mean = np.mean([one.predict("a goal")[0].scores["war"] for one in war])
    [scores] = (one.scores for one in again.predict("a goal"))
    assert scores == pytest.approx(sums | found[0].scores | {"war": mean}, abs=1e-5)
    with pytest.raises(UserError, match=r"hypotheses: .* a number above 0"):
        loaded.with_labels(["war", "art"], {"war": {"War.": 0}})
    with pytest.raises(UserError, match="hypothesis 2 is not a string"):
        loaded.with_labels(["war", "art"], {"war": ["War.", 3]})  # type: ignore[list-item]


def test_one_hypothesis_each_is_what_it_was_however_it_is_written(tmp_path: Path) -> None:
    plain = encode_labels(tiny_run(tmp_path))
    before = (tmp_path / "run/labels" / NAMES_FILE).stat().st_mtime_ns
    for template in (["This text is about {label}."], {"This text is about {label}.": 7}):
        found = encode_labels(tiny_config(tmp_path, labels={"template": template}))
        assert found.fingerprint == plain.fingerprint and found.weights is None
    assert (tmp_path / "run/labels" / NAMES_FILE).stat().st_mtime_ns == before
    assert json.loads((tmp_path / "run/labels" / NAMES_FILE).read_text())["version"] == 1

    found = encode_labels(tiny_config(tmp_path, labels=SEVERAL))
    assert WEIGHTS_OF_HYPOTHESES in found.fingerprint and len(found.states) == 2 + 2 + 3
    scaled = {"template": {"This text is about {label}.": 6, "{label}": 2}}
    assert encode_labels(tiny_config(tmp_path, labels=SEVERAL | scaled)).fingerprint == found.fingerprint
    other = encode_labels(tiny_config(tmp_path, labels=SEVERAL | {"template": list(TEMPLATES)}))
    assert other.fingerprint["hypotheses"] == found.fingerprint["hypotheses"]
    assert other.fingerprint != found.fingerprint and other.weights is not None and other.weights[0] == [0.5, 0.5]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"weights": None},
        {"weights": [[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]]},
        {"weights": [[0.75, 0.25], [0.75, 0.25]]},
        {"weights": [[2, -1], [0.75, 0.25], [0.4, 0.3, 0.3]]},
        {"weights": [[0.5, 0.25], [0.75, 0.25], [0.4, 0.3, 0.3]]},
        {"weights": [[], [0.5, 0.25, 0.25], [0.25] * 4]},
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Any], several: RunConfig, tmp_path: Path) -> None:
    labels = load_adapter(several.run_dir.adapter).labels
    folder = tmp_path / "copy"
    folder.mkdir()
    labels.save(folder)
    assert LabelStates.load(folder).by_label == labels.by_label
    words = json.loads((folder / NAMES_FILE).read_text())
    (folder / NAMES_FILE).write_text(json.dumps(words | change))
    with pytest.raises(UserError, match=r"labels\.json' is damaged .*: copy it again, or run encode-labels again"):
        LabelStates.load(folder)


@pytest.mark.parametrize("template", [3, [], {}, ["{label}"] * 2, {"{label}": -1}, ["{label}", 3], ["x"]], ids=str)
def test_templates_that_are_none_are_refused_in_one_line(template: Any) -> None:
    values = {
        "run": {"dir": "x"},
        "backbone": {"name_or_path": "x"},
        "data": {"train": "x"},
        "method": {"name": "probe"},
    }
    with pytest.raises(
        UserError, match=r"^config: 'labels\.template': (must be a string; or, |the template must)"
    ) as fault:
        parse_config(values | {"labels": {"template": template}})
    assert str(fault.value).count("labels.template") == 1


def test_one_injection_per_label_cannot_hold_them(several: RunConfig, tmp_path: Path) -> None:
    adapter = load_adapter(several.run_dir.adapter)
    with pytest.raises(UserError, match="have several hypotheses"):
        save_label_injections(adapter, tiny_facts(), tmp_path / "exported")


@pytest.mark.parametrize(
    ("keys", "objective", "rows"),
    [
        ({"name": "lt_prefix", "shortlist": None}, "candidates", 4 * 3),
        ({"name": "lt_prefix", "shortlist": 2}, "candidates", 2),
        ({"name": "lt_prefix", "shortlist": None}, "pairs", 3),
        ({"name": "lt_prefix", "shortlist": None}, "batch", 2 * 3),
        ({"name": "prompt", "head": "label_aware"}, "candidates", 1),
    ],
)
def test_each_hypothesis_is_a_row_of_the_estimate(keys: dict[str, Any], objective: Any, rows: int) -> None:
    method = TypeAdapter(AnyMethodConfig).validate_python({"head": "label_aware"} | keys)
    train = TrainConfig(objective=objective, batch_size=1 + (objective == "batch"))
    assert rows_per_text(method, train, 4, hypotheses=3) == rows
