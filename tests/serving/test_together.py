"""Texts of several adapters in one pass: the same numbers as `predict` gives for each.

covers serving/together, serving/reading
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbone.by_length import PASS_COST
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.serving.adapters import Adapters, Choices
from pipeline.serving.reading import Asked, Texts, read_together
from pipeline.serving.together import Job, OutOfMemoryError, score_together
from tests.support.served import METHODS, save_adapters
from tests.support.tiny import save_tiny, tiny_model

TEXTS = ["a goal", "shares fell on monday", "stars are born in clouds of dust " * 2, "x"]
SHARED = [name for name in METHODS if name != "lora"]


@pytest.fixture(scope="module")
def loaded(adapters: dict[str, Path]) -> Adapters:
    return Adapters({name: adapters[name] for name in SHARED}, Choices(device="cpu"))


def longest_first(rows: list[dict]) -> list[int]:
    return sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))


def expected(adapter: LoadedAdapter, texts: list[str]) -> np.ndarray:
    return np.array([list(one.scores.values()) for one in adapter.predict(texts)], dtype=np.float32)


@pytest.mark.parametrize("name", SHARED)
def test_an_adapter_alone_scores_as_predict_does_bit_for_bit(
    name: str, loaded: Adapters, adapters: dict[str, Path]
) -> None:
    alone = LoadedAdapter.load(adapters[name], "cpu")
    others = [alone, loaded[name]]
    if alone.adapter.config.method.open_labels:
        others.append(loaded[name].with_labels(["war", "art", "sport"]))
    for adapter in others:
        for texts in (TEXTS[:1], TEXTS):
            rows = adapter.rows(texts)
            order = longest_first(rows)
            [scores], _ = score_together([Job(adapter, [rows[place] for place in order])], 16384)
            assert isinstance(scores, torch.Tensor)
            assert np.array_equal(scores.numpy(), expected(adapter, texts)[order])
    assert np.array_equal(expected(alone, TEXTS), expected(loaded[name], TEXTS))


@pytest.mark.parametrize("name", ["after", "after_fitted", "zero"])
def test_and_where_labels_of_like_length_are_read_together(
    name: str, loaded: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PASS_COST, "cpu", 0)
    adapter = loaded[name].with_labels(["war", "art and music of our own days", "sport at sea", "tea"])
    rows = adapter.rows(TEXTS[:1])
    [scores], passes = score_together([Job(adapter, rows)], 16384)
    assert isinstance(scores, torch.Tensor) and passes > 2, "the text, and labels of more than one length"
    assert np.array_equal(scores.numpy(), expected(adapter, TEXTS[:1]))


@pytest.mark.parametrize("positions", [16384, 100, 1])
def test_all_adapters_together_score_as_each_alone(loaded: Adapters, positions: int) -> None:
    """In one pass per kind of reading, in many, and row by row."""
    jobs = [Job(loaded[name], loaded[name].rows([text])) for name in SHARED for text in TEXTS]
    found, passes = score_together(jobs, positions)
    for job, scores, text in zip(jobs, found, TEXTS * len(SHARED), strict=True):
        assert isinstance(scores, torch.Tensor)
        np.testing.assert_allclose(scores.numpy(), expected(job.adapter, [text]), rtol=1e-6, atol=3e-6)
    alone = sum(score_together([job], positions)[1] for job in jobs)
    assert passes < alone / 2 if positions == 16384 else passes <= alone


@pytest.mark.parametrize("names", [("edit", "probe"), ("generated", "places", "static", "edit"), ("late_generated",)])
def test_what_edits_states_shares_a_pass_with_all_that_is_read_alike(
    loaded: Adapters, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PASS_COST, "cpu", 128)  # so that texts of unlike length share a pass
    jobs = [Job(loaded[name], loaded[name].rows([text])) for text in TEXTS[:2] for name in names]
    _, passes = score_together(jobs, 16384)
    assert passes == (2 if "late_generated" in names else 1)  # the layers below are read first


def test_a_method_that_fails_fails_alone(loaded: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("prompt", "prefix", "probe")
    jobs = [Job(loaded[name], loaded[name].rows(TEXTS[:1])) for name in names]
    monkeypatch.setattr(loaded["prompt"].model.method, "head", None)
    found, _ = score_together(jobs, 16384)
    assert isinstance(found[0], TypeError)
    for name, scores in zip(names[1:], found[1:], strict=True):
        assert isinstance(scores, torch.Tensor)
        np.testing.assert_allclose(scores.numpy(), expected(loaded[name], TEXTS[:1]), atol=3e-6)


def test_memory_that_cannot_be_had_says_so(loaded: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*given: object, **named: object) -> torch.Tensor:
        return torch.empty(2**55)

    job = Job(loaded["probe"], loaded["probe"].rows(TEXTS))
    monkeypatch.setattr(FrozenBackbone, "forward", too_much)
    with pytest.raises(OutOfMemoryError, match="can't allocate memory"):
        score_together([job], 16384)


def test_pairs_and_texts_in_one_batch(tmp_path: Path) -> None:
    save_tiny(tmp_path / "backbone", "bert")
    paths = save_adapters(tmp_path, {"texts": METHODS["prompt"]})
    paths |= save_adapters(tmp_path, {"pairs": METHODS["prompt"], "probe": METHODS["probe"]}, pairs=True)
    loaded = Adapters(paths, Choices(device="cpu"))
    given = {"texts": ["a goal"], "pairs": [("a goal", "a loss")], "probe": [("x", "shares fell")]}
    jobs = [Job(loaded[name], loaded[name].rows(texts)) for name, texts in given.items()]
    found, _ = score_together(jobs, 16384)
    for job, scores, texts in zip(jobs, found, given.values(), strict=True):
        assert isinstance(scores, torch.Tensor)
        want = [list(one.scores.values()) for one in job.adapter.predict(texts)]
        np.testing.assert_allclose(scores.numpy(), np.array(want), rtol=1e-6, atol=3e-6)


def test_adapters_that_join_layers_and_poolings(tmp_path: Path) -> None:
    save_tiny(tmp_path / "backbone", "llama_gqa")
    names = ("prefix", "after", "after_fitted", "late", "plain", "edit", "probe")
    backbone = {"layers": [1, 2], "pooling": "statistics"}
    paths = save_adapters(tmp_path, {name: METHODS[name] for name in names}, backbone=backbone)
    paths |= save_adapters(tmp_path, {"mean": METHODS["probe"]}, backbone=backbone | {"pooling": "mean"})
    loaded = Adapters(paths, Choices(device="cpu"))
    jobs = [Job(loaded[name], loaded[name].rows([text])) for name in paths for text in TEXTS]
    found, _ = score_together(jobs, 16384)
    want = np.concatenate([expected(LoadedAdapter.load(path, "cpu"), TEXTS) for path in paths.values()])
    np.testing.assert_allclose(np.concatenate([list(one) for one in found]), want, rtol=1e-5, atol=1e-5)


def some_texts(rows: int, width: int, *, typed: bool = False) -> Texts:
    ids = torch.randint(4, 300, (rows, width))
    mask = (torch.arange(width) < torch.randint(1, width + 1, (rows, 1))).long()
    return Texts(ids, mask, torch.randint(2, ids.shape) if typed else None)


@pytest.mark.parametrize("family", ["llama_gqa", "deberta", "gpt2", "bert", "opt"])
@pytest.mark.parametrize("positions", [10**6, 40])
def test_injections_of_any_length_share_a_pass(family: str, positions: int) -> None:
    """Prefixes, prompts and texts alone, of which only those have token types (BERT reads them), in families whose
    prefix comes by the cache, by attention and by a wrapper."""
    torch.manual_seed(0)
    model = tiny_model(family).eval()
    backbone = FrozenBackbone(model, facts_of(model.config))
    asked = [Asked("alone", some_texts(2, 5, typed=True))]
    for tokens, width in ((3, 9), (6, 4)):
        mask = torch.rand(3, tokens) > 0.3
        prefix = torch.randn(3, tokens, backbone.facts.prefix_width())
        asked.append(Asked("prefix", some_texts(3, width), injection=Injection(mask, prefix=prefix)))
        prompt = torch.randn(3, tokens, backbone.facts.hidden_size)
        asked.append(Asked("prompt", some_texts(3, width + 1), injection=Injection(mask, prompt=prompt)))
    with torch.no_grad():
        found, passes = read_together(backbone, asked, positions)
        assert passes == 2 or positions == 40
        for one, hidden in zip(asked, found, strict=True):
            exists = one.texts.mask.bool()
            want = backbone(one.texts.ids, one.texts.mask, one.injection, one.texts.types)
            torch.testing.assert_close(hidden[exists], want[exists], rtol=1e-5, atol=1e-5)
