"""Many clients of a server at once, some of which behave badly; every answer is checked against `predict`."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np

from pipeline.engine.loaded_adapter import LoadedAdapter

Case = tuple[str, str]
"""An adapter's name and a text."""
MOST_APART = 1e-5
"""Between an answer in a mixed batch and that of `predict`, in units of the larger score; texts differ by far more."""


@dataclass
class Outcome:
    """What became of the requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Of those that were sent whole."""
    wrong: list[str] = field(default_factory=list)
    """Texts whose answer is not theirs."""
    lost: list[str] = field(default_factory=list)
    """Sent whole, and the connection ended without an answer."""
    rude: Counter[str] = field(default_factory=Counter)
    """Requests of clients that behave badly, by kind."""


class Expected:
    """What `predict` answers, by adapter and text."""

    def __init__(self, paths: Mapping[str, Path], count: int) -> None:
        names = list(paths)
        self.cases = [(names[number % len(names)], f"text {number} of {number * 7919}") for number in range(count)]
        loaded = {name: LoadedAdapter.load(path, "cpu") for name, path in paths.items()}
        self.scores: dict[str, np.ndarray] = {}
        for name in names:
            texts = [text for other, text in self.cases if other == name]
            for text, found in zip(texts, loaded[name].predict(texts), strict=True):
                self.scores[text] = np.array(list(found.scores.values()))


async def load(
    address: str,
    expected: Expected,
    clients: int,
    *,
    rude: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> Outcome:
    """Sends every case once, by so many clients. `rude`: others misbehave meanwhile.

    `meanwhile` is called in the middle: when a quarter of the cases is sent.
    """
    outcome = Outcome()
    cases = _calling(expected.cases, len(expected.cases) // 4, meanwhile or (lambda: None))
    bad = [asyncio.create_task(_rude(address, number, outcome)) for number in range(8 if rude else 0)]
    await asyncio.gather(*(_client(address, cases, expected, outcome) for _ in range(clients)))
    for task in bad:
        task.cancel()
    await asyncio.gather(*bad, return_exceptions=True)
    return outcome


def _calling(cases: Sequence[Case], place: int, call: Callable[[], None]) -> Iterator[Case]:
    for number, case in enumerate(cases):
        if number == place:
            call()
        yield case


async def _client(address: str, cases: Iterator[Case], expected: Expected, outcome: Outcome) -> None:
    async with httpx2.AsyncClient(base_url=address, timeout=120) as client:
        for name, text in cases:
            try:
                found = await client.post("/v1/classify", json={"model": name, "texts": [text]})
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                return  # nobody listens any more
            except httpx2.TransportError:
                outcome.lost.append(text)
                continue
            outcome.statuses[found.status_code] += 1
            if found.status_code == 200:
                scores = np.array(list(found.json()["results"][0]["scores"].values()))
                want = expected.scores[text]
                if np.abs(scores - want).max() > MOST_APART * max(1.0, np.abs(want).max()):
                    outcome.wrong.append(text)


async def _rude(address: str, number: int, outcome: Outcome) -> None:
    """Cuts connections in head, body and answer, sends rubbish, too much, or very slowly."""
    place, chance = urlsplit(address), random.Random(number)
    body = b'{"model": "prefix", "texts": ["a goal"]}'
    lines = ("POST /v1/classify HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""])
    while True:
        kind = chance.choice(["cut head", "cut body", "cut answer", "rubbish", "malformed", "oversized", "slow"])
        outcome.rude[kind] += 1
        try:
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        try:
            whole = head.encode() + body
            if kind == "rubbish":
                whole = chance.randbytes(500)
            elif kind == "malformed":
                whole = whole[:-10] + b"}" * 10
            elif kind == "oversized":
                whole = head.replace(str(len(body)), str(10**9)).encode() + b" " * 100_000
            elif kind.startswith("cut") and kind != "cut answer":
                whole = whole[: 30 if kind == "cut head" else -5]
            if kind == "slow":
                for byte in whole[:20]:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)
            writer.write(whole)
            await writer.drain()
            await asyncio.sleep(chance.uniform(0, 0.05))
            if kind in ("rubbish", "malformed"):
                await asyncio.wait_for(reader.read(100), 10)
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()
