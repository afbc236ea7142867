"""What the one rank of test_ds_configs.py does: trains a little with every preset."""

import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

PRESETS = Path(__file__).resolve().parents[1] / "ds_configs"
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
    """Preset and precision -> figures."""
    torch.set_num_threads(1)
    names = sorted(path.stem for path in PRESETS.glob("*.json"))
    return {f"{name} {dtype}": train(name, dtype) for dtype in ("bfloat16", "float32") for name in names}


def train(name: str, dtype: str) -> dict[str, Any]:
    """Losses, types of the optimizer's state, and whether only the trainable part changed."""
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
