"""GPU, driver and torch build; memory and disks."""

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.doctor.check import Check, failure, ok, reason, warning

GIB = 2**30
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control groups that this process is in, and where they are."""


def torch_and_driver() -> list[Check]:
    """PyTorch imports, and its build fits the driver: a matrix product runs on every GPU."""
    gpus = _gpus_of_driver()
    seen = f"{len(gpus)} GPU(s), first {gpus[0]}" if gpus else "no NVIDIA GPU"
    driver = ok("driver", seen)
    try:
        import torch
    except Exception as error:  # ImportError, or OSError for a library that is not there
        advice = "install the pinned packages: python -m pip install -r requirements.txt"
        return [driver, failure("torch", f"cannot be imported: {reason(error)}", advice)]
    build = f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU build'}"
    if torch.cuda.is_available():
        return [driver, ok("torch", build), *_try_gpus()]
    if gpus and torch.version.cuda is None:
        advice = "install PyTorch's CUDA build (pytorch.org, Get Started), else the GPU stays idle"
        return [driver, failure("torch", build, advice)]
    if gpus:
        advice = f"the driver is too old for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides the GPUs"
        return [driver, failure("torch", f"{build}, sees no GPU", advice)]
    return [driver, ok("torch", f"{build}; jobs run on the CPU"), _try_cpu()]


def _gpus_of_driver() -> list[str]:
    """What nvidia-smi reports, without torch."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return ended.stdout.strip().splitlines() if ended.returncode == 0 else []


def _try_gpus() -> list[Check]:
    import torch

    for index in range(torch.cuda.device_count()):
        try:
            square = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
            assert float((square @ square)[0, 0]) == 64
        except Exception as error:
            return [failure("GPU", f"cuda:{index}: {reason(error)}", "this torch build does not fit this GPU")]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return [warning("GPU", "no bfloat16 in hardware", "set backbone.dtype=float32, or take an Ampere or newer GPU")]
    return [ok("GPU", f"{torch.cuda.device_count()} visible, bfloat16 products run")]


def _try_cpu() -> Check:
    from pipeline.backbone.cpu_speed import SLOW, bfloat16_slowdown

    # No figure, which would differ between ranks.
    if bfloat16_slowdown() < SLOW:
        return ok("CPU", "bfloat16 products are about as fast as float32, or faster")
    return warning("CPU", "bfloat16 products take several times as long as float32", "set backbone.dtype=float32")


def memory() -> list[Check]:
    """Memory and cores that this process may use now: a job, or a container, has not all of its node."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return []
    most = min(_limits(), default=math.inf)
    limit = f", this job or container may have {most / GIB:.1f} GiB in all" if most < available else ""
    found = f"{available / GIB:.1f} GiB available{limit}, {len(os.sched_getaffinity(0))} CPU cores"
    if min(available, most) < 2 * GIB:
        return [warning("memory", found, "even a small run needs about 2 GiB")]
    return [ok("memory", found)]


def _limits() -> Iterator[int]:
    """Bytes that the control groups of this process may have together, each with those above it, of version 1 or 2."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else ():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (GROUPS / "memory", "memory.limit_in_bytes") if controllers else (GROUPS, "memory.max")
        parts = Path(place).parts[1:]
        # A container may see the groups from its own on, as the root.
        for file in (root.joinpath(*parts[:count], name) for count in range(len(parts) + 1)):
            if file.is_file() and (text := file.read_text().strip()).isdecimal():  # else "max"
                yield int(text)


def disks(run: Path | None) -> list[Check]:
    """The run directory can be written; there is room for it, for the hub's cache and in /dev/shm."""
    target = run or Path()
    results = [_writable(target), _space("model cache", hub_cache(), 5.0, "set HF_HOME to a larger disk")]
    if Path("/dev/shm").is_dir():
        # NCCL and tokenizing workers exchange data there; containers often allow 64 MB.
        results.append(_space("shared memory", Path("/dev/shm"), 0.5, "start the container with --shm-size=8g"))
    return results


def hub_cache() -> Path:
    """Where hub models are kept, by the hub library's own rules."""
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _writable(target: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=_nearest(target)) as file:
            file.write(b"doctor")
    except OSError as error:
        return failure("run directory", f"'{target}': {error.strerror or error}", "choose another run.dir")
    return _space("run directory", target, 1.0, "free space, or choose another run.dir")


def _space(name: str, path: Path, wanted_gib: float, advice: str) -> Check:
    free = shutil.disk_usage(_nearest(path)).free / GIB
    found = f"{free:.1f} GiB free at '{path}'"
    return ok(name, found) if free >= wanted_gib else warning(name, f"only {found}", advice)


def _nearest(path: Path) -> Path:
    """The path itself, or the first folder above that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
