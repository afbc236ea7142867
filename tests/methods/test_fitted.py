"""What starts from the fitted probe: its scores at the start, its definition, and labels that were not in training.

covers methods/heads, methods/label_tuning
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.core.errors import Preempted, UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.methods.heads import FittedHead, state_similarity
from pipeline.methods.label_tuning import FittedLabelTuning
from pipeline.methods.logistic import Fit
from pipeline.stages.run import run
from tests.methods.test_label_tuning import FACTS, MASK, K, config_of, method_of, states
from tests.methods.test_shortlist import TEXTS, TinyReader, read
from tests.support.tiny_run import tiny_config

H = FACTS.hidden_size


def some_fit(prior_weight: float) -> Fit:
    draw = torch.Generator().manual_seed(3)
    return Fit(torch.randn(K, H, generator=draw).double(), torch.randn(K, generator=draw).double(), prior_weight)


def head_of(fit: Fit) -> FittedHead:
    head = FittedHead(H, K).double()
    head.load_state_dict(FittedHead.state_of(fit))
    return head


POOLED = torch.randn(5, H, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
def test_the_head_is_the_probe_in_any_dtype(prior_weight: float) -> None:
    fit = some_fit(prior_weight)
    expected = POOLED @ fit.weight.T + fit.bias + prior_weight * state_similarity(POOLED, states(), MASK)
    torch.testing.assert_close(head_of(fit)(POOLED, states(), MASK), expected)
    assert not list(head_of(fit).parameters())
    torch.testing.assert_close(head_of(fit).bfloat16()(POOLED, states(), MASK), expected)


@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
def test_a_label_that_was_not_in_training_has_the_prior_alone(prior_weight: float) -> None:
    fit = some_fit(prior_weight)
    found = head_of(fit)(POOLED, states(), MASK, torch.tensor([2, -1, 0]))
    known = POOLED @ fit.weight.T + fit.bias
    expected = torch.stack([known[:, 2], torch.zeros(5), known[:, 0]], dim=1)
    weights = torch.tensor([prior_weight, prior_weight or 1.0, prior_weight])
    torch.testing.assert_close(found, expected + weights * state_similarity(POOLED, states(), MASK))


def tuning(**keys: Any) -> FittedLabelTuning:
    method = method_of(name="lt_prompt", **keys)
    assert isinstance(method, FittedLabelTuning)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    method.head.load_state_dict(FittedHead.state_of(some_fit(0.7)))
    return method


@pytest.mark.parametrize("shortlist", [None, 1, 2])
def test_before_the_first_step_it_is_the_probe_and_reads_nothing_else(shortlist: int | None) -> None:
    method, candidates = tuning(shortlist=shortlist), torch.tensor([[2, 0, 1], [1, 2, 0]])
    found = method.scores(TinyReader(alone_only=True), candidates, states(), MASK)
    torch.testing.assert_close(found, method.head(TEXTS.tanh(), states(), MASK).float().gather(1, candidates))
    method.begin_tuning()
    assert not torch.equal(method.scores(read, candidates, states(), MASK), found)


@pytest.mark.parametrize("trained", [None, [1, -1, 0]])
@pytest.mark.parametrize("shortlist", [None, 2])
def test_scores_by_definition(shortlist: int | None, trained: list[int] | None) -> None:
    method, candidates = tuning(shortlist=shortlist), torch.tensor([[2, 0, 1], [1, 2, 0]])
    method.begin_tuning()
    index = None if trained is None else torch.tensor(trained)
    method = method if index is None else method.among(index)
    found = method.scores(read, candidates, states(), MASK)
    alone = method.head(TEXTS.tanh(), states(), MASK, index).float()
    for text, row in enumerate(candidates.tolist()):
        nearest = sorted(row, key=lambda k: -alone[text, k].item())[: shortlist or K]
        for place, label in enumerate(row):
            injection = method.inject(states()[label : label + 1], MASK[label : label + 1])
            pooled = read(injection.expand(2), 1)[text : text + 1]
            injected = method.head(pooled, states(), MASK, index).float()[0, label]
            both = (alone[text, label] + injected) / 2
            torch.testing.assert_close(found[text, place], both if label in nearest else alone[text, label])


def test_other_labels_leave_the_method_as_it_is() -> None:
    method = tuning()
    other = method.among(torch.tensor([-1, -1, -1]))
    assert method.trained is None and other.head is method.head and other.producer is method.producer


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lt_prefix"},
        {"name": "lt_prompt"},
        {"name": "lt_prefix", "judge": "label_aware"},
        {"name": "lt_prompt", "position": "after"},
        {"name": "prefix", "tokens": 2, "head": "fitted"},
    ],
    ids=lambda keys: "_".join(map(str, keys.values())),
)
def test_a_run_starts_where_the_probe_ends_and_keeps_what_is_better(tmp_path: Path, method: dict[str, Any]) -> None:
    probe = run(tiny_config(tmp_path, method={"name": "probe"}, run={"dir": str(tmp_path / "probe")}))
    train = {"max_steps": 4, "eval_every": 2, "batch_size": 4, "learning_rate": 1e-3}
    config = tiny_config(tmp_path, method=method, train=train, logging={"trackers": ["jsonl"]})
    tuned = run(config)
    lines = [json.loads(line) for line in config.run_dir.metrics_log.read_text().splitlines()]
    evaluated = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert list(evaluated) == [0, 2, 4]
    if method["name"] != "prefix":  # whose first reading has a random prefix in it
        assert evaluated[0] >= probe["validation"]["accuracy"], "with the judge, where that is better"
    assert tuned["validation"]["accuracy"] == max(evaluated.values())
    classifier = LoadedAdapter.load(config.run_dir.adapter)
    rows = [line.split("\t") for line in Path(str(config.data.test)).read_text().splitlines()[1:]]
    found = [each.label for each in classifier.predict([text for text, _ in rows])]
    assert np.mean([label == true for label, (_, true) in zip(found, rows, strict=True)]) == pytest.approx(
        tuned["test"]["accuracy"]
    )
    if config_of(**method).open_labels:
        assert len(classifier.with_labels(["sport", "tides"]).predict(["a goal"])[0].scores) == 2


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(name: str, stop_after: int | None) -> dict[str, bytes]:
        train_keys = {"max_steps": 4, "eval_every": 2, "batch_size": 4, "learning_rate": 1e-2}
        config = tiny_config(
            tmp_path, run={"dir": str(tmp_path / name)}, method={"name": "lt_prompt"}, train=train_keys
        )
        if stop_after is not None:
            stops = iter([*[None] * stop_after, "SIGTERM"])
            with monkeypatch.context() as patch:
                patch.setattr("pipeline.training.preemption.Preemption.requested", lambda *_: next(stops, None))
                with pytest.raises(Preempted):
                    run(config)
        run(config)
        folders = (config.run_dir.adapter, config.run_dir.adapter_final)
        return {f"{folder.name}": (folder / "adapter.safetensors").read_bytes() for folder in folders}

    whole = trained("whole", None)
    assert trained("stopped", 4) == whole


def test_a_strangers_head_of_bits_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method={"name": "lt_prompt"}, train={"max_steps": 1, "batch_size": 4})
    run(config)
    file = config.run_dir.adapter / "adapter.safetensors"
    tensors = load_file(file)
    tensors["head.bias_bits"] = torch.full_like(tensors["head.bias_bits"].double(), torch.nan).view(torch.int64)
    save_file(tensors, file, metadata={"format": "pt"})
    (config.run_dir.adapter / "SHA256SUMS").unlink()
    classifier = LoadedAdapter.load(config.run_dir.adapter)
    with pytest.raises(UserError, match="have NaN or infinite scores"):
        classifier.predict(["a goal"])
