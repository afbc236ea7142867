"""Batches: who is in one, who waits, and what becomes of them when memory is short.

covers serving/batcher
"""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbone.frozen import FrozenBackbone
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.serving import batcher as module
from pipeline.serving.adapters import Adapters, Choices
from pipeline.serving.batcher import Batcher, BusyError, NoMemoryError, Request
from pipeline.serving.monitor import Monitor


@pytest.fixture(scope="module")
def loaded(adapters: dict[str, Path]) -> Adapters:
    return Adapters({name: adapters[name] for name in ("probe", "prefix")}, Choices(device="cpu"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many texts each job had, batch by batch."""
    found: list[list[int]] = []
    real = module.score_together

    def noted(jobs: list, positions: int) -> tuple:
        found.append([len(job.rows) for job in jobs])
        return real(jobs, positions)

    monkeypatch.setattr(module, "score_together", noted)
    return found


class Held:
    """A batcher that is kept busy, so that what is submitted meanwhile waits together."""

    def __init__(self, **options: float) -> None:
        given = {"positions": 4096, "longest_wait": 0.0, "most_waiting": 1000} | options
        self.batcher = Batcher(Monitor(), **given)  # type: ignore[arg-type]
        self.free = threading.Event()

    def __enter__(self) -> Batcher:
        self.batcher.run(lambda: self.free.wait(60))
        return self.batcher

    def __exit__(self, *error: object) -> None:
        self.free.set()
        self.batcher.close()


def request(adapter: LoadedAdapter, *texts: str) -> Request:
    return Request(adapter, adapter.rows(list(texts)))


def scores_of(adapter: LoadedAdapter, *texts: str) -> np.ndarray:
    return np.array([list(one.scores.values()) for one in adapter.predict(list(texts))], dtype=np.float32)


def test_what_waits_becomes_one_batch(loaded: Adapters, batches: list[list[int]]) -> None:
    with Held() as batcher:
        asked = [request(loaded[name], "a goal", "x") for name in ("probe", "prefix", "probe")]
        for one in asked:
            batcher.submit(one)
        assert batcher.waiting == 6
    assert batches == [[4, 2]], "two jobs of one batch"
    for one in asked:
        np.testing.assert_allclose(one.answer.result(), scores_of(one.adapter, "a goal", "x"), rtol=1e-6, atol=3e-6)


def test_a_long_request_does_not_hold_up_a_short_one(loaded: Adapters, batches: list[list[int]]) -> None:
    order: list[str] = []
    with Held(positions=60) as batcher:
        long, short = request(loaded["probe"], *["a goal"] * 40), request(loaded["probe"], "a goal")
        for name, one in (("long", long), ("short", short)):
            one.answer.add_done_callback(lambda _, name=name: order.append(name))
            batcher.submit(one)
    assert order == ["short", "long"]
    assert max(map(sum, batches)) <= 10 and sum(map(sum, batches)) == 41


def test_a_batch_waits_for_those_on_their_way_but_not_for_long(loaded: Adapters, batches: list[list[int]]) -> None:
    batcher = Batcher(Monitor(), positions=4096, longest_wait=30, most_waiting=10)
    alone = request(loaded["probe"], "x")
    batcher.submit(alone)
    alone.answer.result(20)  # nobody is on the way
    first, second = request(loaded["probe"], "x"), request(loaded["probe"], "y")
    with batcher.coming():
        batcher.submit(first)
        time.sleep(0.3)
        assert not first.answer.done()
        batcher.submit(second)
    second.answer.result(20)
    assert batches == [[1], [2]]
    batcher.longest_wait = 0.2
    with batcher.coming():
        late = request(loaded["probe"], "x")
        batcher.submit(late)
        late.answer.result(20)
    batcher.close()


def test_what_is_cancelled_is_not_read_and_what_is_submitted_is_done(
    loaded: Adapters, batches: list[list[int]]
) -> None:
    with Held(most_waiting=3) as batcher:
        gone, kept = request(loaded["probe"], "x", "y"), request(loaded["probe"], "a goal", "y")
        batcher.submit(gone)
        with pytest.raises(BusyError):
            batcher.submit(kept)
        assert gone.answer.cancel() and batcher.waiting == 0
        batcher.submit(kept)
        too_late = threading.Thread(target=batcher.close)
        too_late.start()
        time.sleep(0.1)
        with pytest.raises(BusyError):
            batcher.submit(request(loaded["probe"], "z"))
        with pytest.raises(BusyError):
            batcher.run(lambda: None)
    too_late.join()
    assert kept.answer.result().shape == (2, 3) and batches == [[2]] and not batcher.is_alive


def test_short_of_memory_a_batch_is_halved_and_answered(loaded: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocation fails for real, above a number of rows; that it is so only for a while is noticed."""
    most, rows = 2, []
    real = FrozenBackbone.forward

    def short(self: FrozenBackbone, ids: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        rows.append(len(ids))
        torch.empty(2**55 if len(ids) > most else 1)
        return real(self, ids, *given, **named)  # type: ignore[arg-type]

    texts = [f"text {number}" for number in range(9)]
    want = scores_of(loaded["prefix"], *texts)
    monkeypatch.setattr(FrozenBackbone, "forward", short)
    batcher = Batcher(Monitor(), positions=4096, longest_wait=0, most_waiting=100)
    asked = request(loaded["prefix"], *texts)
    batcher.submit(asked)
    np.testing.assert_allclose(asked.answer.result(60), want, rtol=1e-6, atol=3e-6)
    most = 0
    hopeless = request(loaded["prefix"], "x")
    batcher.submit(hopeless)
    with pytest.raises(NoMemoryError):
        hopeless.answer.result(60)
    most = 10**6
    for _ in range(20):
        asked = request(loaded["prefix"], *texts)
        batcher.submit(asked)
        np.testing.assert_allclose(asked.answer.result(60), want, rtol=1e-6, atol=3e-6)
    batcher.close()
    assert rows[-1] == 27, "full batches again"


def test_a_fault_fails_its_batch_alone(loaded: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(Monitor(), positions=4096, longest_wait=0, most_waiting=100)
    with monkeypatch.context() as patch:
        patch.setattr(FrozenBackbone, "forward", lambda *given, **named: 1 / 0)
        bad = request(loaded["probe"], "x")
        batcher.submit(bad)
        with pytest.raises(ZeroDivisionError):
            bad.answer.result(60)
    good = request(loaded["probe"], "x")
    batcher.submit(good)
    assert np.array_equal(good.answer.result(60), scores_of(loaded["probe"], "x"))
    assert batcher.run(lambda: 7).result(60) == 7
    with pytest.raises(ZeroDivisionError):
        batcher.run(lambda: 1 / 0).result(60)
    batcher.close()
