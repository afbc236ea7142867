"""Same seed, device and world size: the same adapter, bit for bit, however often the run was interrupted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from pipeline.core.errors import UserError


@contextmanager
def as_it_was() -> Iterator[None]:
    """Around work that changes torch's choice of kernels, which is then restored."""
    strict, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warned)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def make_deterministic(seed: int, *, strict: bool) -> None:
    """Seeds torch and takes deterministic kernels where there are any. `strict`: in backward passes no others."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # cuDNN's attention has no deterministic backward. (PyTorch's notes on randomness, CUDA SDPA.)
    torch.backends.cuda.enable_cudnn_sdp(not strict)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


@contextmanager
def deterministic_backward() -> Iterator[None]:
    """Around a backward pass, in which `strict` takes no other kernels than deterministic ones.

    Merely warned, PyTorch's attention adds in any order on a GPU. Forward passes are not so held to it: what is refused
    there (the histograms of experts' loads, say) gives the same numbers each time.
    Raises UserError where a kernel has no deterministic kind.
    """
    torch.use_deterministic_algorithms(True, warn_only=torch.backends.cuda.cudnn_sdp_enabled())
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        kernel = str(error).partition(" does not")[0]
        raise UserError(
            f"this backbone's backward pass needs {kernel}, of which there is no deterministic kind: set "
            "engine.deterministic=false, and a repeated or resumed run is the same up to rounding alone"
        ) from error
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
