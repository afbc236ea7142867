"""What every rank of test_estimate.py does: trains on a sharded backbone and measures what the estimate foretells."""

from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import Tensor, nn

from pipeline.backbone.config import BackboneConfig, Quantization
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.loading import load_backbone
from pipeline.distributed.ranks import Ranks
from tests.support.estimate_zero import ZERO

ROWS, TEXT_TOKENS, INJECTED_TOKENS = 2, 12, 4


class Prefixed(nn.Module):
    """A frozen backbone with one trainable prefix, small enough to stay gathered."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        facts = backbone.facts
        self.backbone = backbone
        self.start = nn.Parameter(torch.randn(INJECTED_TOKENS, facts.prefix_layers[0].key_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> one number"""
        facts = self.backbone.facts
        times = facts.prefix_width() // self.start.shape[1]
        mask = torch.ones(len(ids), INJECTED_TOKENS, dtype=torch.bool)
        prefix = self.start.repeat(1, times).expand(len(ids), -1, -1)
        hidden = self.backbone(ids, torch.ones_like(ids), Injection(mask=mask, prefix=prefix))
        return hidden.float().square().mean()


class Meter:
    """Bytes of frozen weights whole at once, and bytes that all-gathers bring in."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self.peak, self.received = 0, 0
        self._fetch = PartitionedParameterCoordinator.fetch_sub_module
        self._gather = partition_parameters._dist_allgather_fn

    def __enter__(self) -> "Meter":
        def fetch(coordinator: Any, *args: Any, **options: Any) -> None:
            self._fetch(coordinator, *args, **options)
            whole = [w for w in self.weights if w.ds_status != ZeroParamStatus.NOT_AVAILABLE and not w.ds_persist]
            self.peak = max(self.peak, sum(w.ds_numel * w.ds_tensor.element_size() for w in whole))

        def gather(part: Tensor, whole: Tensor, *args: Any) -> Any:
            self.received += whole.nbytes - part.nbytes
            return self._gather(part, whole, *args)

        PartitionedParameterCoordinator.fetch_sub_module = fetch
        partition_parameters._dist_allgather_fn = gather
        return self

    def __exit__(self, *failure: Any) -> None:
        PartitionedParameterCoordinator.fetch_sub_module = self._fetch
        partition_parameters._dist_allgather_fn = self._gather


def measure(folder: Path) -> dict[str, dict[str, int]]:
    """Figures of this rank, in 8 bits without and with activation checkpointing, and in 4 bits."""
    torch.set_num_threads(1)
    return {
        "plain": measure_case(folder, "int8", checkpointing=False),
        "checkpointing": measure_case(folder, "int8", checkpointing=True),
        "int4": measure_case(folder, "int4", checkpointing=False),
    }


def measure_case(folder: Path, quantization: Quantization, *, checkpointing: bool) -> dict[str, int]:
    """Bytes at rest, gathered at most, and received in a step in which DeepSpeed knows the order of the modules."""
    settings = {
        "train_micro_batch_size_per_gpu": ROWS,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": ZERO,
    }
    config = BackboneConfig(name_or_path=str(folder / "llama"), quantization=quantization, dtype="float32")
    model = load_backbone(config, zero_config=settings, device=torch.device("cpu"), ranks=Ranks.joined())
    at_rest = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in model.parameters())
    module = Prefixed(FrozenBackbone(model, facts_of(model.config), gradient_checkpointing=checkpointing))
    optimizer = torch.optim.AdamW([module.start])
    engine = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]
    for _ in range(3):  # DeepSpeed watches the first two steps, then fetches ahead
        with Meter(module) as meter:
            loss = engine(torch.arange(4, 4 + ROWS * TEXT_TOKENS).view(ROWS, TEXT_TOKENS))
            engine.backward(loss)
            engine.step()
    return {"at_rest": at_rest, "gathered": meter.peak, "received": meter.received}
