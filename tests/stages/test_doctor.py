"""The doctor in real processes: on this machine, without torch, and on two ranks that see the same files or do not.

covers doctor/check, doctor/hardware, doctor/network, doctor/ranks, doctor/software
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.distributed.launcher import free_port
from pipeline.doctor import hardware, network, ranks, software
from pipeline.doctor.check import Check, run_checks
from pipeline.stages.doctor import merged, table
from tests.support.fork_server import REPOSITORY
from tests.support.processes import launch, run_script


def rows_of(output: str) -> dict[str, str]:
    """State by name of the check."""
    lines = [line for line in output.splitlines() if line.startswith(("ok ", "warning ", "failure "))]
    return {line[9:].split("  ")[0]: line.split()[0] for line in lines}


def test_without_torch_the_table_says_so(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')\n")
    child = subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    rows = rows_of(child.stdout)
    assert child.returncode == 2 and rows["torch"] == "failure" and rows["Python"] == "ok", child.stdout
    assert "cannot be imported: ImportError: libcudart.so" in child.stdout
    assert "pip install -r requirements.txt" in child.stdout and "run directory" in rows
    assert "gloo" not in rows and "DeepSpeed" not in rows
    assert child.stderr.splitlines() == ["error: 1 check(s) failed: torch; what to do stands beside each"]


def launches(folder: Path) -> dict[str, list[int]]:
    """Runs in a process of its own: the doctor alone, on two ranks, and on two ranks that do not share a folder."""
    os.environ["COLUMNS"] = "300"
    ranks.FILE_SECONDS = 1
    shared, other = folder / "shared", folder / "other"
    other.mkdir()
    os.chdir(folder)
    return {
        "alone": launch(["doctor", str(shared)], folder / "alone.log"),
        "together": launch(["doctor", str(shared)], folder / "together.log", world=2),
        "apart": launch(["doctor", "run"], folder / "apart.log", world=2, fault=f"work_in:{other}"),
    }


def test_alone_and_on_two_ranks(tmp_path: Path) -> None:
    statuses = run_script("tests.stages.test_doctor:launches", tmp_path, 300)
    shown = {name: (tmp_path / f"{name}.log").read_text() for name in statuses}
    rows = {name: rows_of(text) for name, text in shown.items()}
    assert statuses == {"alone": [0], "together": [0, 0], "apart": [2, 0]}, shown
    for name in ("Python", "packages", "torch", "DeepSpeed", "bitsandbytes", "model hub", "run directory", "gloo"):
        assert rows["alone"][name] == rows["together"][name] == "ok", shown
    for name in ("same software", "shared folder", "clocks"):
        assert name not in rows["alone"] and rows["together"][name] == "ok", shown
    assert not list((tmp_path / "shared").iterdir()), "nothing is left behind"
    assert shown["apart"].count("must lie on a file system that all hosts mount") == 2
    assert "shows this rank no file of rank(s) 1" in shown["apart"]
    assert "rank 1: " in shown["apart"] and "shows this rank no file of rank(s) 0" in shown["apart"]


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": "1073741824"}),
        ("5:cpu:/\n4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "1073741824"}),
        ("0::/of/the/host\n", {"memory.max": "1073741824"}),
    ],
)
def test_memory_that_a_job_or_a_container_may_not_have(
    groups: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(groups)
    monkeypatch.setattr(hardware, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(hardware, "GROUPS", tmp_path / "groups")
    [check] = hardware.memory()
    assert "this job" not in check.found
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{content}\n")
    [check] = hardware.memory()
    assert check.state == "warning" and "may have 1.0 GiB in all" in check.found


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_requirements", lambda: {"no-such-package": ">=1", "torch": ">=99", "numpy": ">=1"})
    [check] = software.packages()
    assert check.state == "failure" and check.found.startswith("no-such-package is missing; torch 2.")
    assert check.found.endswith("is not >=99")


def test_the_requirements_are_the_projects() -> None:
    found = software._requirements()
    assert found["jinja2"] == ">=3.1" and "," in found["torch"] and len(found) >= 15


def test_a_gpu_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine whose torch sees no GPU")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    driver, build = hardware.torch_and_driver()
    assert driver.found == "1 GPU(s), first NVIDIA H200, 143771 MiB, 570.1"
    assert build.state == "failure" and ("CUDA build" in build.advice or "driver is too old" in build.advice)


def test_disks_and_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [check, *_] = hardware.disks(tmp_path / "file" / "run")
    assert check.state == "failure" and check.advice == "choose another run.dir"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    [check] = network.hub()
    assert check.state == "warning" and "export HF_HUB_OFFLINE=1" in check.advice and str(tmp_path) in check.advice


def test_the_cores_are_those_that_a_job_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # of the node
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    assert hardware.memory()[0].found.endswith(" available, 3 CPU cores")


def test_a_check_that_breaks_is_a_failure_of_its_own() -> None:
    def broken() -> list[Check]:
        raise ValueError("a\nb")

    first, second = run_checks([broken, software.python])
    assert (first.name, first.state, first.found) == ("broken", "failure", "ValueError: a") and second.state == "ok"


def test_troubles_of_other_ranks_are_told_once() -> None:
    sound, slow = Check("clock", "ok", "1"), Check("clock", "warning", "2", "mend it")
    rows = merged([[sound], [slow], [sound], [slow]])
    assert rows == [sound, Check("clock", "warning", "rank 1, 3: 2", "mend it")]
    lines = table(rows, width=60).splitlines()
    assert lines[-1] == "1 ok, 1 warning, 0 failure" and "→ mend it" in lines[2]
