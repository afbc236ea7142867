"""From texts and the name of an adapter to scores: checks, tokens, a place in a batch."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.core.errors import UserError, nearest
from pipeline.data.config import OneOrSeveral, weighted
from pipeline.data.in_memory import Text
from pipeline.engine.loaded_adapter import LoadedAdapter, Prediction
from pipeline.serving.adapters import Adapters, check_name
from pipeline.serving.batcher import Batcher, BusyError, NoMemoryError, Request
from pipeline.serving.faults import ClientGone, Refused
from pipeline.serving.limits import Limits
from pipeline.serving.monitor import Monitor

T = TypeVar("T")
Gone = Callable[[], Any]
"""A coroutine function that returns when the client has left."""


@dataclass(frozen=True)
class Answer:
    """What was found for one request."""

    adapter: str
    predictions: list[Prediction]
    tokens: int


class Service:
    """What all routes share: adapters, the batches of their one backbone, and counters."""

    def __init__(self, adapters: Adapters, limits: Limits, *, positions: int, longest_wait: float) -> None:
        """`positions`: tokens of a batch; `longest_wait`: seconds that a batch may be waited for."""
        self.adapters, self.limits, self.monitor = adapters, limits, Monitor()
        self.batcher = Batcher(
            self.monitor, positions=positions, longest_wait=longest_wait, most_waiting=limits.waiting
        )
        self.monitor.queue.set_function(lambda: self.batcher.waiting)
        self.monitor.adapters.set_function(lambda: len(adapters.names))
        self._tokenizers = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def classify(
        self,
        model: str | None,
        texts: Sequence[Text],
        gone: Gone,
        *,
        labels: Sequence[str] | None = None,
        hypotheses: dict[str, OneOrSeveral] | None = None,
        whole: bool = False,
    ) -> Answer:
        """Predictions for the texts. `whole`: refuse texts that are too long. Raises Refused, and ClientGone."""
        name = self._name(model)
        self._check(texts, labels, hypotheses or {})
        started = time.monotonic()
        loaded = self.adapters[name]
        if labels is not None:
            loaded = await self._among(loaded, labels, hypotheses or {}, gone)
        with self.batcher.coming():
            rows = await asyncio.get_running_loop().run_in_executor(self._tokenizers, self._rows, loaded, texts)
            self._check_rows(rows, whole)
            request = Request(loaded, rows, arrived=started)
            tokens = sum(len(row["input_ids"]) for row in rows)
            if tokens * request.rows_per_text > self.limits.tokens:
                raise Refused(
                    "too_large",
                    f"the request takes {tokens * request.rows_per_text} tokens to read, its texts "
                    f"once for each label; at most {self.limits.tokens} are read for one: send fewer texts",
                )
            self._submit(request)
        scores = await self._wait(request.answer, gone)
        self.monitor.texts.labels(name).inc(len(rows))
        self.monitor.tokens.labels(name).inc(tokens)
        return Answer(name, _refusing(loaded.predictions, rows, scores), tokens)

    async def put(self, name: str, path: str, gone: Gone) -> LoadedAdapter:
        """Adds an adapter, or takes it in the place of the one of that name. Raises Refused, and ClientGone."""
        _refusing(check_name, name)
        try:
            adapter = await asyncio.to_thread(self.adapters.read, path, self.adapters.calibrated)
        except UserError as error:
            raise Refused("validation", str(error)) from error
        return await self._work(lambda: self.adapters.put(name, adapter), gone)

    def remove(self, name: str) -> None:
        """Raises Refused where there is none of that name."""
        if not self.adapters.remove(name):
            raise self._unknown(name)

    @property
    def is_alive(self) -> bool:
        """Can it still answer?"""
        return self.batcher.is_alive

    def close(self) -> None:
        """Returns when everything that was accepted is answered."""
        self._tokenizers.shutdown()
        self.batcher.close()

    def _name(self, model: str | None) -> str:
        names = self.adapters.names
        if model is None and len(names) != 1:
            raise Refused("validation", f"name the adapter in 'model': {', '.join(names) or 'none is served'}")
        if model is not None and model not in names:
            raise self._unknown(model)
        return names[0] if model is None else model

    def _unknown(self, name: str) -> Refused:
        return Refused("unknown", f"no adapter is called {name!r:.120}{nearest(name[:120], self.adapters.names)}")

    def _check(self, texts: Sequence[Text], labels: Sequence[str] | None, words: dict[str, OneOrSeveral]) -> None:
        """What can be seen before a tokenizer or the backbone reads anything."""
        limits = self.limits
        if not texts:
            raise Refused("validation", "there is no text")
        if len(texts) > limits.texts:
            raise Refused("too_large", f"{len(texts)} texts; a request has at most {limits.texts}: send several")
        for number, text in enumerate(texts, start=1):
            length = len(text) if isinstance(text, str) else sum(map(len, text))
            if length > limits.characters:
                raise Refused(
                    "too_large", f"text {number} has {length} characters, at most {limits.characters} are read"
                )
        # Each hypothesis is read, as if it were a label's only one.
        count = sum(len(weighted(words.get(name, name))) for name in labels or ())
        if count > limits.labels:
            what = "labels" if labels is not None and count == len(labels) else "hypotheses"
            raise Refused("too_large", f"{count} {what}; a request has at most {limits.labels}")
        if labels is not None and max(map(len, labels), default=0) > limits.characters:
            raise Refused("too_large", f"a label has more than {limits.characters} characters")

    def _rows(self, loaded: LoadedAdapter, texts: Sequence[Text]) -> list[dict[str, Any]]:
        with self.adapters.tokenizing:
            return _refusing(loaded.rows, list(texts))

    @staticmethod
    def _check_rows(rows: list[dict[str, Any]], whole: bool) -> None:
        for number, row in enumerate(rows, start=1):
            if whole and row["truncated"]:
                raise Refused("too_large", f"text {number} is longer than the adapter reads: set truncate, or cut it")

    async def _among(
        self, loaded: LoadedAdapter, labels: Sequence[str], hypotheses: dict[str, OneOrSeveral], gone: Gone
    ) -> LoadedAdapter:
        found = self.adapters.known(loaded, labels, hypotheses)
        self.monitor.label_sets.labels("miss" if found is None else "hit").inc()
        if found is not None:
            return found
        return await self._work(lambda: self.adapters.among(loaded, labels, hypotheses), gone)

    async def _work(self, work: Callable[[], T], gone: Gone) -> T:
        try:
            return await self._wait(self.batcher.run(work), gone)
        except BusyError as error:
            raise Refused("unavailable", "the server is ending") from error

    def _submit(self, request: Request) -> None:
        try:
            self.batcher.submit(request)
        except BusyError as error:
            waiting = self.limits.waiting
            raise Refused("overloaded", f"so many texts wait already that with these it is over {waiting}") from error

    async def _wait(self, answer: "Future[T]", gone: Gone) -> T:
        """What is awaited, unless the client leaves before."""
        found = asyncio.wrap_future(answer)
        left = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({found, left}, return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise ClientGone
            return found.result()
        except UserError as error:
            raise Refused("validation", str(error)) from error
        except NoMemoryError as error:
            raise Refused("unavailable", "there is no memory for a text of this length and so many labels") from error
        finally:
            left.cancel()
            found.cancel()


def _refusing(work: Callable[..., T], *given: Any) -> T:
    """Does it; a UserError is the client's."""
    try:
        return work(*given)
    except UserError as error:
        raise Refused("validation", str(error)) from error
