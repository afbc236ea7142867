"""DeepSpeed is told once that there is no GPU, unless somebody has said otherwise."""

import os

import pytest
import torch

from pipeline.distributed.device import announce_device


@pytest.mark.parametrize("said", [None, "xpu"])
def test_without_a_gpu_deepspeed_expects_none(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if said:
        monkeypatch.setenv("DS_ACCELERATOR", said)
    announce_device()
    assert os.environ.get("DS_ACCELERATOR") == (None if torch.cuda.is_available() and not said else said or "cpu")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
