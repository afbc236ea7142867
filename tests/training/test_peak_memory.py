"""Peak memory of this process, beside what the kernel says of it."""

from pathlib import Path

import pytest
import torch

from pipeline.training.peak_memory import peak_memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU its memory is meant")
def test_on_a_host_it_is_the_kernels_high_water_mark() -> None:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    found = peak_memory()
    assert found["memory"] == "host"
    assert found["peak_memory_bytes"] == pytest.approx(int(line.split()[1]) * 1024, rel=0.01)
