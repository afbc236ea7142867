"""The judge is fitted to what the backbone reads, on whatever it runs; the plain definition is one reading at a time.

covers training/judging
"""

import json
import logging
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from pipeline.core.errors import Preempted
from pipeline.core.files import read_json
from pipeline.data.splits import Split, load_split
from pipeline.data.tokenizer import pad_token_id
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.methods.conditional_logit import JudgedTexts, choose_judge
from pipeline.methods.label_tuning import JudgedLabelTuning
from pipeline.stages.run import run
from tests.support.faults import no_memory_above
from tests.support.tiny_run import tiny_config

STEPS = {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-12}
"""Training that leaves the injections as they began."""
SEVERAL = {"texts": {"sport": ["sport", "games and matches"], "business": "money", "science": "what is found out"}}


def read_plainly(loaded: LoadedAdapter, split: Split) -> JudgedTexts:
    """Each text with each label by itself."""
    pad, count, found = pad_token_id(loaded.tokenizer, 1000), len(loaded.labels), []
    for row in range(len(split)):
        batch = split.batch(torch.tensor([row]).numpy(), pad)
        one = [loaded.model(**batch, candidates=torch.tensor([[label]]), unscored=True) for label in range(count)]
        found.append(torch.cat(one, dim=1))
    return JudgedTexts(torch.cat(found), torch.arange(count).expand(len(split), -1), torch.from_numpy(split.labels))


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ({"name": "lt_prompt", "position": "after"}, {"train": STEPS | {"keep_token_states": True}}),
        (
            {"name": "lt_prompt", "position": "after"},
            {"train": STEPS | {"keep_token_states": True}, "backbone": {"layers": [1, 2], "pooling": "statistics"}},
        ),
        ({"name": "lt_prompt", "position": "after"}, {"labels": SEVERAL}),
        (
            {"name": "lt_prefix", "judge": "fitted", "first_layer": 1},
            {"engine": {"deepspeed": "ds_configs/zero3_cpu.json"}},
        ),
        ({"name": "lt_prefix", "judge": "fitted", "shortlist": 2}, {}),
    ],
    ids=["behind_kept", "behind_joined", "behind_several", "late_zero3", "shortlist"],
)
def test_the_judge_is_the_fit_to_each_reading(
    tmp_path: Path, method: dict[str, Any], sections: dict[str, dict[str, Any]]
) -> None:
    config = tiny_config(tmp_path, method=method, **{"train": STEPS, **sections}, logging={"trackers": ["jsonl"]})
    run(config)
    loaded = LoadedAdapter.load(config.run_dir.adapter_final)
    judge, count = loaded.model.method, len(loaded.labels)
    assert isinstance(judge, JudgedLabelTuning) and judge.is_tuned
    with torch.no_grad():
        train, validation = (
            read_plainly(loaded, load_split(config.run_dir.data / name)) for name in ("train", "validation")
        )
        judge.is_tuned.zero_()
        split = load_split(config.run_dir.data / "validation")
        batch = split.batch(torch.arange(len(split)).numpy(), 0)
        alone = loaded.model(**batch, candidates=validation.candidates)
    nearest = alone.topk(method.get("shortlist", count), dim=1).indices
    rows = torch.arange(len(split)).unsqueeze(1)
    expected = choose_judge(
        train, count, JudgedTexts(validation.states[rows, nearest], nearest, validation.labels), alone
    )
    weight, bias = judge.judge.weight_bits.view(torch.float64), judge.judge.bias_bits.view(torch.float64)
    torch.testing.assert_close(weight, expected.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bias, expected.bias, rtol=1e-3, atol=1e-3)
    lines = [json.loads(line) for line in config.run_dir.metrics_log.read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[0]["seconds"] > 0, "the judge's time counts"
    [accuracy] = [line["validation/accuracy"] for line in lines if line["step"] == 0 and "validation/accuracy" in line]
    scores = expected.beside(alone, JudgedTexts(validation.states[rows, nearest], nearest, validation.labels))
    wanted = scores if expected.is_better else alone
    assert accuracy == pytest.approx(float((wanted.argmax(1) == validation.labels).double().mean()))


def test_without_a_step_the_fit_is_all(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method={"name": "lt_prompt", "position": "after"}, train={"max_steps": 0})
    metrics = run(config)
    summary = read_json(config.run_dir.summary_file)
    assert (summary["steps"], summary["converged"]) == (0, True)
    assert summary["validation"]["accuracy"] == metrics["validation"]["accuracy"]
    assert run(config) == metrics, "it is finished"


def test_among_many_labels_a_training_text_is_read_with_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.judging.MOST_LABELS", 2)
    monkeypatch.setattr("pipeline.training.judging.MOST_TEXTS", 5)
    config = tiny_config(tmp_path, method={"name": "lt_prompt", "judge": "fitted", "shortlist": 2}, train=STEPS)
    run(config)
    readings = read_json(config.run_dir.summary_file)["readings"]
    assert readings == 13 + 5 * 2 + 5 * 2 + 4 * 2, "texts alone, for the judge, in the one step"


def test_where_memory_is_short_it_is_read_in_smaller_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, method={"name": "lt_prefix", "judge": "fitted"}, train=STEPS | {"batch_size": 2})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        no_memory_above("6,0", patch.setattr)
        run(config)
    assert "evaluate.tokens_per_batch" in read_json(config.run_dir.memory_file)


def test_a_signal_ends_the_reading_and_the_next_start_begins_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, method={"name": "lt_prompt", "judge": "fitted"}, train=STEPS)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.preemption.Preemption.requested", lambda *_: "SIGTERM")
        with pytest.raises(Preempted, match="stopped after step 0"):
            run(config)
    assert not config.run_dir.is_finished
    run(config)
    assert config.run_dir.is_finished


def mixed_texts(count: int, seed: int) -> str:
    """Rows of 8 labels whose words are drawn from all labels half of the time."""
    draw, labels = Random(seed), [f"w{letter}" for letter in "abcdefgh"]
    words = {
        label: [draw.choice("bcdfgk") + draw.choice("aeiou") + draw.choice("lmnrst") for _ in range(6)]
        for label in labels
    }
    draw = Random(seed + count)

    def text(label: str) -> str:
        return " ".join(draw.choice(words[label if draw.random() < 0.5 else draw.choice(labels)]) for _ in range(6))

    return "text,label\n" + "".join(f"{text(label)} {row},{label}\n" for row in range(count) for label in labels)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_with_several_hypotheses_it_is_taken_where_scoring_gains_by_it(tmp_path: Path, seed: int) -> None:
    """Scoring reads the nearest hypotheses of all labels, the fit all hypotheses of the nearest labels."""
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "validation", "test")}
    for (_, file), count in zip(files.items(), (16, 12, 4), strict=True):
        Path(file).write_text(mixed_texts(count, seed))
    found = {}
    for judge in ("probe", "fitted"):
        config = tiny_config(
            tmp_path,
            run={"dir": str(tmp_path / judge)},
            data=files,
            labels={"texts": {"wa": ["one", "two", "three", "four", "five"]}},
            method={"name": "lt_prompt", "position": "after", "judge": judge, "shortlist": 4},
            train={"max_steps": 0},
        )
        found[judge] = run(config)["validation"]
    judged, alone = ((metrics["accuracy"], -metrics["log_loss"]) for metrics in (found["fitted"], found["probe"]))
    assert judged == pytest.approx(alone) or judged > alone
