"""GPUs by their data sheets, and how much of what they promise is got."""

from dataclasses import dataclass

USABLE = 0.9
"""Share of a GPU's memory that a plan may fill."""
EFFICIENCY, QUANTIZED_EFFICIENCY = 0.18, 0.135
"""Share of the peak FLOP/s that a training step reaches, with weights as they are and in few bits: measured on an H100
(docs/gpu.md)."""
GPUS_PER_NODE = 8
NETWORK_BYTES_PER_SECOND = 50e9
"""Between nodes, per GPU: one 400 Gbit/s port each."""


@dataclass(frozen=True)
class Gpu:
    """Figures of the makers' data sheets; the link is one direction of NVLink, or PCIe where there is none."""

    memory_bytes: float
    flops: float
    """Dense bf16 (V100: fp16) operations per second."""
    link_bytes_per_second: float


GPUS = {
    "h200": Gpu(141e9, 989e12, 450e9),
    "h100-80": Gpu(80e9, 989e12, 450e9),
    "a100-80": Gpu(80e9, 312e12, 300e9),
    "a100-40": Gpu(40e9, 312e12, 300e9),
    "l40s": Gpu(48e9, 362e12, 32e9),
    "v100-32": Gpu(32e9, 125e12, 150e9),
}
