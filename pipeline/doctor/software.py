"""Python, the packages, and the parts of them that a job needs."""

import ctypes.util
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from pipeline.doctor.check import Check, failure, ok, reason, warning

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALL = "python -m pip install -r requirements.txt"


def python() -> list[Check]:
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036 (that is what is asked here)
        return [failure("Python", found, "Python 3.11 or newer is needed")]
    return [ok("Python", found)]


def packages() -> list[Check]:
    """Every required package is there, in a version that was tested to work."""
    wrong, versions = [], []
    requirements = _requirements()
    for name, wanted in requirements.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not _satisfies(version, wanted):
            wrong.append(f"{name} {version} is not {wanted}")
        if name in ("torch", "transformers", "deepspeed"):
            versions.append(f"{name} {version}")
    if wrong:
        return [failure("packages", "; ".join(wrong), INSTALL)]
    return [ok("packages", f"all {len(requirements)} required: {', '.join(versions)}, ...")]


def _requirements() -> dict[str, str]:
    """Package -> version range, of the installed project or of the clone."""
    try:
        lines = [line for line in importlib.metadata.requires("l-tuning") or [] if "extra ==" not in line]
    except importlib.metadata.PackageNotFoundError:
        import tomllib

        lines = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [(re.match(r"[\w.-]+", line) or [""])[0] for line in lines]
    return {name: line[len(name) :].split(";")[0].strip() for name, line in zip(names, lines, strict=True)}


def _satisfies(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # so is much else, which is reported by name
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def deepspeed() -> list[Check]:
    """DeepSpeed imports. It compiles nothing for us: the optimizer is PyTorch's AdamW."""
    try:
        importlib.import_module("deepspeed")
    except Exception as error:
        return [failure("DeepSpeed", reason(error), f"it must import without an error: {INSTALL}")]
    ops = ok("DeepSpeed ops", "none needed, so neither nvcc nor a C++ compiler (torch AdamW is the optimizer)")
    return [ok("DeepSpeed", importlib.metadata.version("deepspeed")), ops, *_nvme_offload()]


def _nvme_offload() -> list[Check]:
    """The one op that a documented setting needs. (DeepSpeed's own check would compile, and speak on failure.)"""
    name = "DeepSpeed async_io"
    if shutil.which("ninja") and ctypes.util.find_library("aio"):
        return [ok(name, "can be compiled; only offload to NVMe uses it")]
    return [ok(name, "cannot be compiled; only offload to NVMe needs it (libaio and ninja)")]


def bitsandbytes() -> list[Check]:
    """The operators of backbone.quantization=int8 give the right product where a job will call them."""
    name = "bitsandbytes"
    try:
        import torch

        from pipeline.backbone.int8 import Int8Linear

        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = Int8Linear(32, 16, False, torch.bfloat16, 6.0)
        weight = torch.linspace(-1, 1, 512).view(16, 32)
        codes, scales = layer.quantize(weight.to(device))
        layer.weight, layer.scale_bits = torch.nn.Parameter(codes, requires_grad=False), scales
        rows = torch.linspace(-1, 1, 64, device=device, dtype=torch.bfloat16).view(2, 32)
        error = float((layer.multiply(rows).float().cpu() - rows.float().cpu() @ weight.t()).abs().max())
    except Exception as fault:
        return [failure(name, reason(fault), f"{INSTALL}; or keep backbone.quantization=none")]
    version = importlib.metadata.version(name)
    if error > 0.2:
        return [failure(name, f"{version}: wrong products on {device}", "keep backbone.quantization=none")]
    return [ok(name, f"{version}, int8 products are right on {device}")]


def launchers() -> list[Check]:
    """Programs that start a job on several GPUs."""
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    names = ("torchrun", "deepspeed", "accelerate", "srun", "sbatch")
    found = [name for name in names if shutil.which(name, path=here)]
    if not found:
        return [warning("launchers", "none found", f"one process works; for more: {INSTALL}")]
    if not shutil.which(found[0]):
        bin_folder = Path(sys.executable).parent
        return [warning("launchers", f"{', '.join(found)}, but not on PATH", f"source {bin_folder / 'activate'}")]
    return [ok("launchers", ", ".join(found))]
