"""Ranks that are stopped or killed, signals, full and read-only disks."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.faults.runs import HEARTBEAT_SECONDS, Workshop


def strike_one(workshop: Workshop, number: str, phase: str, call: int, rank: int, world: int = 2) -> dict[str, Any]:
    """A signal to one rank; how the run ended, how long after, and whether the next run ends as an undisturbed one."""
    note = workshop.folder / "fault-time"
    os.environ["FAULT_TIME"] = str(note)
    name = f"struck-{number}-{phase.replace(' ', '-')}-{rank}"
    statuses = workshop.start(name, world=world, fault=f"strike:{number},{phase},{call},0", faulty=[rank])
    seconds = time.time() - float(note.read_text())
    said = workshop.log(name).read_text()
    last = workshop.start(name, world=world)
    return {
        "case": f"{number} to rank {rank} in {phase}, {world} rank(s)",
        "statuses": statuses,
        "seconds": seconds,
        "named": f"rank {rank} on " in said and "no sign of life" in said,
        "last": last,
        "differing": workshop.differing(name, f"undisturbed-fp32-{world}"),
    }


def bound_seconds(number: str) -> float:
    """Until all ranks have ended: a silent rank's term, and time to say so on a busy machine, where no rank waits for
    `engine.timeout_seconds`; a broken connection is told sooner."""
    return 30 + (HEARTBEAT_SECONDS if number == "SIGSTOP" else 0)


class SmallDisk:
    """A tmpfs of a few megabytes on a folder. `mounted` is False where this process may not mount."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.mounted = (
            shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
        )

    def remount(self, mode: str) -> None:
        """`ro` or `rw`"""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], check=True)

    def fill(self, spare_bytes: int) -> None:
        """Takes all room but this."""
        with (self.folder / "ballast").open("wb") as file:
            free = os.statvfs(self.folder)
            file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - spare_bytes))

    def empty(self) -> None:
        """Gives the room back."""
        (self.folder / "ballast").unlink()

    def __enter__(self) -> "SmallDisk":
        return self

    def __exit__(self, *error: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def full_disk(workshop: Workshop, policy: str, spare_bytes: int) -> dict[str, Any]:
    """Training on a disk with little room; then, with room again, the same command."""
    with SmallDisk(workshop.folder / f"disk-{policy}-{spare_bytes}", 16) as disk:
        if not disk.mounted:
            return {"skipped": "no tmpfs can be mounted here"}
        run = f"{disk.folder.name}/run"
        workshop.copy("prepared", run)
        disk.fill(spare_bytes)
        full = workshop.start(run, f"train.on_write_error={policy}")
        disk.empty()
        said = workshop.log(run).read_text()
        last = workshop.start(run)
        return {
            "full": full,
            "warned": "NOT WRITTEN" in said or "No space left on device" in said,
            "last": last,
            "differing": workshop.differing(run, "undisturbed-fp32-1"),
        }


def read_only_disk(workshop: Workshop) -> dict[str, Any]:
    """A run directory that nobody can write."""
    with SmallDisk(workshop.folder / "disk-read-only", 16) as disk:
        if not disk.mounted:
            return {"skipped": "no tmpfs can be mounted here"}
        run = f"{disk.folder.name}/run"
        workshop.copy("prepared", run)
        disk.remount("ro")
        status = workshop.start(run)
        disk.remount("rw")
        return {"status": status, "said": workshop.log(run).read_text()}


def second_process(workshop: Workshop) -> dict[str, Any]:
    """Another command on a run directory in use is refused, on all its ranks; one after a kill is not."""
    run = workshop.copy("prepared", "twice")
    is_held, tell = os.pipe()
    child = os.fork()
    if child == 0:
        from pipeline.core.run_lock import RunLock

        lock = RunLock(workshop.folder / run)
        lock.acquire()
        os.write(tell, b".")
        signal.pause()
    os.close(tell)  # or a child that died would leave the read waiting
    os.read(is_held, 1)  # the file alone may be there before it is locked
    os.close(is_held)
    refused = workshop.start(run, world=2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = workshop.log(run).read_text()
    return {"refused": refused, "said": said, "owner": child, "after": workshop.start(run, command="preprocess")}


def signals(workshop: Workshop) -> list[dict[str, Any]]:
    """SIGTERM to one rank in several phases: exit status and seconds from the signal to the last rank's end."""
    note = workshop.folder / "fault-time"
    os.environ["FAULT_TIME"] = str(note)
    found = []
    for phase, call, rank in (("step", 3, 0), ("evaluation", 1, 1), ("evaluation", 4, 0), ("background write", 2, 0)):
        name = f"signalled-{phase.replace(' ', '-')}-{call}"
        workshop.copy("prepared", name)
        statuses = workshop.start(name, world=2, fault=f"strike:SIGTERM,{phase},{call},0", faulty=[rank])
        seconds = time.time() - float(note.read_text())
        last = workshop.start(name, world=2)
        differing = workshop.differing(name, "undisturbed-fp32-2") if last == [0, 0] else [f"status {last}"]
        case = f"SIGTERM to rank {rank} in {phase}"
        found.append({"case": case, "statuses": statuses, "seconds": seconds, "differing": differing})
    return found


def recovery_seconds(workshop: Workshop) -> list[float]:
    """From the start of the same command after a kill to the first new step, three times."""
    note = workshop.folder / "fault-time"
    os.environ["FAULT_TIME"] = str(note)
    found = []
    for attempt in range(3):
        name = f"recovered-{attempt}"
        workshop.copy("prepared", name)
        workshop.start(name, fault="strike:SIGKILL,step,6,0")
        started = time.time()
        workshop.start(name, fault="strike:SIGKILL,step,1,0")
        found.append(float(note.read_text()) - started)
    return found
