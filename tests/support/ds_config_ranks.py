"""What the ranks of test_ds_configs.py do: train a little with every preset."""

import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import partition_parameters
from deepspeed.utils import groups, safe_get_full_fp32_param
from torch import Tensor, nn

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.loading import load_backbone
from pipeline.distributed.ranks import Ranks

PRESETS = Path(__file__).resolve().parents[2] / "ds_configs"
STEPS, ACCUMULATION = 2, 2


class HalfFrozen(nn.Module):
    """A frozen part, wide enough not to stay gathered, behind a trainable map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(400, 400)
        self.frozen = nn.Sequential(nn.LayerNorm(400), nn.Linear(400, 400)).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 400] -> [B, 400]"""
        return self.frozen(self.map(x))


def train_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Preset and precision -> metrics."""
    torch.set_num_threads(1)
    names = sorted(path.stem for path in PRESETS.glob("*.json"))
    return {f"{name} {dtype}": train(name, dtype) for dtype in ("bfloat16", "float32") for name in names}


def train(name: str, dtype: str) -> dict[str, Any]:
    """Losses, types of the optimizer's state, and whether only the trainable part changed."""
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # DeepSpeed makes the nodes' groups once in a process
    settings = json.loads((PRESETS / f"{name}.json").read_text())
    settings |= {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": ACCUMULATION}
    settings |= {"gradient_clipping": 1.0, "bf16": {"enabled": dtype == "bfloat16"}}
    torch.manual_seed(0)
    module = HalfFrozen().to(getattr(torch, dtype))
    if settings["zero_optimization"]["stage"] == 3:
        deepspeed.zero.Init(module=module, config_dict_or_path=settings)
    frozen, trained = module.frozen[1].weight, module.map.weight
    before = whole(frozen), whole(trained)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    engine = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]
    inputs = torch.randn(4, 400, dtype=getattr(torch, dtype))
    losses = []
    for _ in range(STEPS * ACCUMULATION):
        loss = (engine(inputs).float() - 1).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    state = [tensor for values in optimizer.state.values() for tensor in values.values() if tensor.numel() > 1]
    return {
        "losses": losses,
        "optimizer_dtypes": sorted({str(tensor.dtype) for tensor in state}),
        "master_dtype": str(safe_get_full_fp32_param(trained).dtype),
        "frozen_kept": torch.equal(before[0], whole(frozen)),
        "trained_moved": not torch.equal(before[1], whole(trained)),
    }


def whole(parameter: nn.Parameter) -> Tensor:
    """A copy of a parameter, partitioned or not."""
    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().clone()


def train_in_nodes(folder: Path) -> dict[str, Any]:
    """The multi-node preset with two ranks to a "node", beside the same without nodes: losses and all-gathers."""
    torch.set_num_threads(1)
    settings = json.loads((PRESETS / "zero3_multinode.json").read_text())
    settings |= {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    settings["bf16"] = {"enabled": False}
    # So that not even a tiny weight stays gathered.
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    return {str(ranks): train_with_nodes(folder, settings, ranks) for ranks in (1, 2)}


def train_with_nodes(folder: Path, settings: dict[str, Any], node_ranks: int) -> dict[str, Any]:
    """Three steps of a trainable map behind an int8 backbone."""
    settings = settings | {"zero_optimization": settings["zero_optimization"] | {"zero_hpz_partition_size": node_ranks}}
    config = BackboneConfig(name_or_path=str(folder / "llama"), quantization="int8", dtype="float32")
    model = load_backbone(config, zero_config=settings, device=torch.device("cpu"), ranks=Ranks.joined())
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), Embedded(model))
    optimizer = torch.optim.AdamW(module[0].parameters(), lr=1e-2)
    engine = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]
    gather, sizes, losses = partition_parameters._dist_allgather_fn, set(), []

    def note(part: Tensor, whole: Tensor, *rest: Any) -> Any:
        if whole.dtype == torch.int8:
            sizes.add(whole.numel() // part.numel())
        return gather(part, whole, *rest)

    partition_parameters._dist_allgather_fn = note
    for _ in range(3):
        loss = engine(torch.ones(2, 5, 16)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    partition_parameters._dist_allgather_fn = gather
    matrices = [p for p in model.parameters() if p.dtype == torch.int8]
    return {
        "losses": losses,
        "gathered_over_ranks": sorted(sizes),
        "elements": sum(p.ds_numel for p in matrices),
        "held": sum(p.ds_tensor.numel() for p in matrices),
        "held_for_node": sum(p.ds_secondary_tensor.numel() for p in matrices if p.ds_secondary_tensor is not None),
    }


class Embedded(nn.Module):
    """A backbone called with embeddings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]"""
        return self.model(inputs_embeds=embeddings).last_hidden_state
