"""Runs command lines one after the other, each in a process of its own, within bounds of memory and time."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from tests.support.fork_server import run_and_exit

MEMORY_BYTES = 4 << 30
"""Of address space, beyond what the imports take."""
WAIT = 5
"""Seconds of the clock that a case may take for each of its seconds of processor time."""


def run_cases(folder: Path) -> list[dict[str, Any]]:
    results = []
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        out, err = folder / f"{number}.out", folder / f"{number}.err"
        began = _processor_seconds()
        status = _fresh(case, out, err) if case["streams"] else _forked(case, out, err)
        results.append({"name": case["name"], "status": status, "seconds": _processor_seconds() - began})
    return results


def _processor_seconds() -> float:
    """Of all cases up to now: how busy this machine is with something else must not matter."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _fresh(case: dict[str, Any], out: Path, err: Path) -> int | None:
    """In a process of its own: what Python makes of closed streams it makes at its start."""
    script = f'ulimit -v {8 << 20}; exec "$0" -m pipeline "$@" {case["streams"]}'
    arguments = ["bash", "-c", script, sys.executable, *case["arguments"]]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        try:
            return subprocess.run(
                arguments,
                stdout=stdout,
                stderr=stderr,
                env=os.environ | case["environment"],
                timeout=WAIT * case["seconds"],
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def _forked(case: dict[str, Any], out: Path, err: Path) -> int | None:
    """The exit status; negative for a signal, None where it did not end in time."""
    pid = os.fork()
    if pid == 0:
        _be_case(case, out, err)
    deadline = time.monotonic() + WAIT * case["seconds"]
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)


def _be_case(case: dict[str, Any], out: Path, err: Path) -> NoReturn:
    def work() -> int:
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (case["seconds"], case["seconds"]))
        os.environ.update(case["environment"])
        from pipeline.cli import main

        return main(case["arguments"])

    run_and_exit(work, failed=70)


def main(arguments: list[str]) -> None:
    """Reads FOLDER/cases.json, writes FOLDER/results.json."""
    [folder] = map(Path, arguments)
    (folder / "results.json").write_text(json.dumps(run_cases(folder)))
