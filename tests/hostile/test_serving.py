"""A server under 10,000 requests while others misbehave: no answer is another's, and none is lost.

A sample runs with all tests, in tests/serving/test_server.py; `bash launch/test.sh --hostile` runs the whole.
"""

import asyncio
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.load import Expected, load
from tests.support.served import METHODS, save_adapters, served_by_process

REQUESTS, CLIENTS = 10_000, 64
ENDS = 10


@pytest.mark.hostile
def test_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {name: method for name, method in METHODS.items() if name != "lora"}
    paths = save_adapters(tmp_path, methods)
    arguments = [f"--adapter={name}={path}" for name, path in paths.items()]
    expected = Expected(paths, REQUESTS)
    with served_by_process(tmp_path / "load.log", *arguments) as server:
        start = time.monotonic()
        outcome = asyncio.run(load(server.address, expected, CLIENTS, rude=True))
        seconds = time.monotonic() - start
        memory = [line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if "RSS" in line]
        assert server.end() == 0
    with capsys.disabled():
        print(f"\n{REQUESTS} requests, {CLIENTS} clients, {len(paths)} adapters, {seconds:.0f} s: {outcome.statuses}")
        print(f"{len(outcome.wrong)} wrong, {len(outcome.lost)} lost; beside them {dict(outcome.rude)}; {memory}")
    assert outcome.statuses == {200: REQUESTS} and not outcome.wrong and not outcome.lost
    lost = 0
    for number in range(ENDS):
        log = tmp_path / f"end-{number}.log"
        with served_by_process(log, *arguments[:3]) as server:
            few = Expected({name: paths[name] for name in list(paths)[:3]}, 200 + 100 * number)
            end = partial(server.process.send_signal, signal.SIGTERM)
            outcome = asyncio.run(load(server.address, few, 1 + 16 * number, meanwhile=end))
            assert server.process.wait(60) == 0
            answered = [line["status"] for line in server.log if line["event"] == "request"]
        lost += len(outcome.lost) + len(outcome.wrong) + abs(len(answered) - outcome.statuses[200])
    with capsys.disabled():
        print(f"{ENDS} ends by SIGTERM under load: {lost} requests lost")
    assert lost == 0
