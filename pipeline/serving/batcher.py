"""The one thread that runs the backbone: it takes what waits, of any adapter, and makes batches of it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.data.batches import longest_first, width
from pipeline.distributed.device import free_memory
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.serving.monitor import Monitor
from pipeline.serving.together import Job, OutOfMemoryError, score_together

log = logging.getLogger(__name__)
T = TypeVar("T")


class BusyError(Exception):
    """More waits already than may wait."""


class NoMemoryError(Exception):
    """One text alone is too much for the memory that there is."""


@dataclass
class Request:
    """The texts of one request, and what becomes of them."""

    adapter: LoadedAdapter
    """Among the labels that are asked for."""
    rows: Sequence[dict[str, Any]]
    """The N texts' tokens."""
    answer: "Future[NDArray[np.float32]]" = field(default_factory=Future)
    """Scores [N, K]. Cancelled: nobody waits for them any more."""
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.scores = np.zeros((len(self.rows), len(self.adapter.labels)), dtype=np.float32)
        self.todo = deque(longest_first(np.array([len(row["input_ids"]) for row in self.rows]), 1))
        self.unanswered = len(self.rows)
        self.rows_per_text = self.adapter.readings or len(self.adapter.labels) * self.adapter.model.most_hypotheses

    def positions(self, place: int) -> int:
        """Tokens that the backbone reads for one of its texts, about."""
        method, trained = self.adapter.adapter.config.method, self.adapter.adapter.labels.hypothesis_tokens
        return self.rows_per_text * (len(self.rows[place]["input_ids"]) + method.injected_tokens(trained))

    def give(self, places: Sequence[int], scores: NDArray[np.float32]) -> None:
        """Scores [n, K] of some of its texts. All there: it is answered."""
        self.scores[list(places)] = scores
        self.unanswered -= len(places)
        if not self.unanswered:
            with suppress(InvalidStateError):  # cancelled
                self.answer.set_result(self.scores)

    def fail(self, error: Exception) -> None:
        """It will not be answered."""
        self.todo.clear()
        with suppress(InvalidStateError):
            self.answer.set_exception(error)


@dataclass(frozen=True)
class Text:
    """One text of a request."""

    request: Request
    place: int


class Batcher:
    """Answers requests in batches of at most `positions` tokens, of whichever adapters.

    A batch starts when it is full, when no other request is known to be `coming`, and at the latest when its oldest
    request has waited `longest_wait` seconds. Requests take turns, text by text, so that a long one does not hold up
    the others. Work of another kind, such as reading new labels, comes first, in the same thread. What is submitted
    before `close` is done.
    """

    def __init__(self, monitor: Monitor, *, positions: int, longest_wait: float, most_waiting: int) -> None:
        """`most_waiting`: texts that may wait for their batch; beyond, `submit` raises BusyError."""
        self.monitor = monitor
        self.positions, self.longest_wait, self.most_waiting = positions, longest_wait, most_waiting
        self._budget = positions
        """Less than `positions` where memory was short lately."""
        self._requests: deque[Request] = deque()
        self._work: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._coming = 0
        self._thread = threading.Thread(target=self._run, name="backbone", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts that are not answered, and in no batch."""
        with self._change:
            return self._waiting()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While a request is read and tokenized, for which a batch may wait."""
        with self._change:
            self._coming += 1
        try:
            yield
        finally:
            with self._change:
                self._coming -= 1
                self._change.notify()

    @property
    def is_alive(self) -> bool:
        """Does its thread run?"""
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queues it. Raises BusyError; a request that is longer than the queue passes where nothing else waits."""
        with self._change:
            waiting = self._waiting()
            if self._closed or (waiting and waiting + len(request.rows) > self.most_waiting):
                raise BusyError
            self._requests.append(request)
            self._change.notify()

    def run(self, work: Callable[[], T]) -> "Future[T]":
        """Has this done by the thread that runs the backbone, between two batches."""
        answer: Future[T] = Future()
        with self._change:
            if self._closed:
                raise BusyError
            self._work.append((work, answer))
            self._change.notify()
        return answer

    def close(self) -> None:
        """Returns when all that was submitted is done."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _waiting(self) -> int:
        return sum(len(request.todo) for request in self._requests if not request.answer.cancelled())

    def _run(self) -> None:
        while (task := self._next()) is not None:
            if isinstance(task, list):
                self._answer(task)
            else:
                _do(*task)

    def _next(self) -> "list[Text] | tuple[Callable[[], Any], Future[Any]] | None":
        """A batch, or other work; None: all is done, and closed."""
        with self._change:
            while True:
                self._requests = deque(r for r in self._requests if r.todo and not r.answer.cancelled())
                if self._work:
                    return self._work.popleft()
                if self._requests:
                    left = min(r.arrived for r in self._requests) + self.longest_wait - time.monotonic()
                    if left <= 0 or not self._coming or self._is_full():
                        return self._take()
                    self._change.wait(left)
                elif self._closed:
                    return None
                else:
                    self._change.wait()

    def _is_full(self) -> bool:
        total = 0
        for request in self._requests:
            for [place] in request.todo:
                total += request.positions(place)
                if total >= self._budget:
                    return True
        return False

    def _take(self) -> list[Text]:
        batch: list[Text] = []
        total = 0
        while self._requests:
            request = self._requests[0]
            place = int(request.todo[0][0])
            total += request.positions(place)
            if batch and total > self._budget:
                break
            request.todo.popleft()
            batch.append(Text(request, place))
            self._requests.popleft()
            if request.todo:
                self._requests.append(request)
        return batch

    def _answer(self, batch: list[Text]) -> None:
        shortage = None
        try:
            self._score(_jobs(batch))
        except OutOfMemoryError as error:
            shortage = str(error)
        except Exception as error:
            log.exception("a batch of %d texts failed", len(batch))
            for text in batch:
                text.request.fail(error)
        if shortage is not None:  # only here, where the error no longer holds what took the memory
            self._answer_in_halves(batch, shortage)

    def _answer_in_halves(self, batch: list[Text], shortage: str) -> None:
        """Halves the passes as well as the batch."""
        self.monitor.out_of_memory.inc()
        log.warning("out of memory with %d texts: halved", len(batch))
        free_memory()
        is_least, self._budget = self._budget == 1, max(1, self._budget // 2)
        if len(batch) > 1:
            self._answer(batch[: len(batch) // 2])
            self._answer(batch[len(batch) // 2 :])
        elif is_least:
            batch[0].request.fail(NoMemoryError(shortage))
        else:
            self._answer(batch)

    def _score(self, jobs: list[list[Text]]) -> None:
        started = time.monotonic()
        asked = [Job(texts[0].request.adapter, [text.request.rows[text.place] for text in texts]) for texts in jobs]
        found, passes = score_together(asked, self._budget)
        self._budget = min(self.positions, self._budget + max(1, self.positions // 16))
        texts = sum(map(len, jobs))
        self.monitor.batch(texts, len({id(job.adapter.adapter) for job in asked}), passes, time.monotonic() - started)
        for job, scores in zip(jobs, found, strict=True):
            for number, text in enumerate(job):
                if isinstance(scores, Exception):
                    text.request.fail(scores)
                else:
                    text.request.give([text.place], scores[number : number + 1].numpy())


def _jobs(batch: Sequence[Text]) -> list[list[Text]]:
    """Texts of the same adapter among the same labels together.

    Those of one request that is alone are in the batches in which `predict` scores them, else in some of like length.
    """
    is_alone = len({id(text.request) for text in batch}) == 1
    by_adapter: dict[tuple[int, int], list[Text]] = {}
    for text in batch:
        length = 0 if is_alone else width(len(text.request.rows[text.place]["input_ids"]))
        by_adapter.setdefault((id(text.request.adapter), length), []).append(text)
    jobs = []
    for texts in by_adapter.values():
        lengths = np.array([len(text.request.rows[text.place]["input_ids"]) for text in texts])
        size = max(1, texts[0].request.adapter.pass_size.rows // texts[0].request.rows_per_text)
        jobs += [[texts[place] for place in places] for places in longest_first(lengths, size)]
    return jobs


def _do(work: Callable[[], Any], answer: "Future[Any]") -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(work())
    except UserError as error:
        answer.set_exception(error)
    except Exception as error:
        log.exception("work between two batches failed")
        answer.set_exception(error)
