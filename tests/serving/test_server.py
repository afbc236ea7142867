"""`ltune serve` as a process: its end by signals, kill and restart, memory that runs out.

covers serving/server, stages/serve, cli/serve
"""

import asyncio
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.serving.server import listening_on
from pipeline.stages.serve import named, serve
from tests.support.load import Expected, load
from tests.support.served import served_by_process

MEMORY = 200 * 2**20
"""Bytes that a server may take for requests."""
NAMES = ("prefix", "prompt", "probe", "zero")


def arguments(adapters: dict[str, Path], *more: str) -> list[str]:
    return [*(f"--adapter={name}={adapters[name]}" for name in NAMES), *more]


def test_killed_restarted_short_of_memory_and_ended_under_load(adapters: dict[str, Path], tmp_path: Path) -> None:
    """One life after another, to spare the time that a process takes to start."""
    expected = Expected({name: adapters[name] for name in NAMES}, 240)
    with served_by_process(tmp_path / "1.log", *arguments(adapters)) as server:
        port = server.address.rpartition(":")[2]
        outcome = asyncio.run(load(server.address, expected, 16, rude=True))
        assert outcome.statuses == {200: 240} and not outcome.wrong and not outcome.lost
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    options = arguments(adapters, f"--port={port}", "--batch-tokens=1000000", "--max-texts=2000")
    with served_by_process(tmp_path / "2.log", *options, most_memory=MEMORY) as server:
        assert server.address.endswith(f":{port}"), "the same place, at once"
        _run_out_of_memory(server.address)
        _end_under_load(server, expected)
        lines = server.log
    assert lines[-1]["event"] == "ended" and lines[-1]["accepted"] > 0
    assert not any("traceback" in line for line in lines)


def _run_out_of_memory(address: str) -> None:
    """A request whose rows do not fit at once, in a process that may take no more: answered, in parts."""
    texts = ["word " * 60] * 1200
    with httpx2.Client(base_url=address, timeout=300) as client:
        asked: dict[str, Any] = {"model": "prefix", "texts": texts}
        found = client.post("/v1/classify", json=asked)
        assert found.status_code == 200, found.text[:500]
        assert len(found.json()["results"]) == 1200
        counts = client.get("/metrics").text
        assert float(re.findall(r"^ltune_out_of_memory_total (.*)", counts, re.MULTILINE)[0]) > 0


def _end_under_load(server: Any, expected: Expected) -> None:
    """SIGTERM while 24 clients ask: every request that was read is answered.

    What is lost beside them was never read: its connection was still the system's when the socket closed.
    """
    before = len(_classified(server))
    outcome = asyncio.run(
        load(server.address, expected, 24, meanwhile=lambda: server.process.send_signal(signal.SIGTERM))
    )
    assert server.process.wait(60) == 0
    assert not outcome.wrong and set(outcome.statuses) == {200}
    assert outcome.statuses[200] < 240, "it ended on the way"
    assert len(outcome.lost) < 24, "at most one of each client, and not of all"
    time.sleep(0.1)
    assert _classified(server)[before:] == [200] * outcome.statuses[200]


def _classified(server: Any) -> list[int]:
    """Statuses of requests for scores. A line comes after its answer: that of another kind may be still to come."""
    return [line["status"] for line in server.log if line.get("route") == "/v1/classify"]


def test_names_of_adapters(adapters: dict[str, Path], tmp_path: Path) -> None:
    probe = adapters["probe"]
    assert named([str(probe), f"x={probe}"]) == {"probe": probe, "x": probe}
    with pytest.raises(UserError, match="another one is called 'x' too"):
        named([f"x={probe}", f"x={adapters['prefix']}"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"token_file": "/nowhere"}, "'/nowhere' cannot be read"),
        ({"token_file": "short"}, "token of at least 16 ASCII characters"),
        ({"max_wait_ms": -1.0}, "--max-wait-ms=-1.0 is not a time"),
        ({"grace": float("nan")}, "--grace=nan is not a time"),
        ({"host": "256.1.1.1"}, "cannot listen on 256.1.1.1, port 8080"),
        ({"port": 2**17}, "cannot listen on 127.0.0.1, port 131072"),
    ],
)
def test_what_cannot_be_served(
    adapters: dict[str, Path], tmp_path: Path, options: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short").write_text("abc\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line):
        serve([str(adapters["probe"])], device="cpu", **options)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--adapter", str(tmp_path / "none")]) == 2
    assert "adapter 'none': " in capsys.readouterr().err


def test_answers_do_not_wait_for_acknowledgments() -> None:
    with listening_on("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
