"""What every rank of test_sharded.py does: loads sharded and whole, compares, trains. Returns metrics as JSON."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.backbone.checkpointing import checkpoint_layers
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.partition import Partitioner
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks

CPU = torch.device("cpu")
GLOBAL_BATCH = 12  # divides by every world size
CASES = [("llama_gqa", "int8", "float32"), ("llama_gqa", "int8", "bfloat16"), ("gpt2", "int8", "float32")]
CASES += [("gpt2", "none", "float32"), ("bert", "int8_weight_only", "float32"), ("llama_gqa", "int4", "bfloat16")]
MIXTURES = [("qwen3_moe", "int8", "float32"), ("gpt_oss", "int8", "float32"), ("mixtral", "none", "float32")]
MIXTURES += [("gpt_oss", "int4", "float32")]
"""Of experts: on one rank and on two."""


TRAINED = ("llama_gqa", "bert", "qwen3_moe", "gpt_oss")


class Prompted(nn.Module):
    """A frozen backbone behind a trainable prompt and before a trainable head."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        hidden, dtype = backbone.config.hidden_size, backbone.config.dtype
        self.backbone = backbone
        self.prompt = nn.Parameter(torch.randn(3, hidden, generator=generator).to(dtype))
        self.head = nn.Parameter(torch.randn(hidden, generator=generator).to(dtype) / hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> scores [B]"""
        embedded = self.backbone.get_input_embeddings()(ids)
        prompt = self.prompt.expand(len(ids), -1, -1)
        hidden = self.backbone(inputs_embeds=torch.cat([prompt, embedded], 1), use_cache=False).last_hidden_state
        return (hidden[:, -1] * self.head).sum(-1)


def ranks() -> Ranks:
    """All of the world."""
    return Ranks(dist.get_rank(), dist.get_world_size())


def check_world(folder: Path) -> dict[str, Any]:
    """All checks of one world."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed's use of torch.distributed
    few = dist.get_world_size() < 3
    results: dict[str, Any] = {"losses": {name: train(folder / name) for name in TRAINED} if few else {}}
    results["uneven"] = few and unevenly(folder / "olmoe")
    for family, quantization, dtype in CASES + (MIXTURES if few else []):
        results[f"{family} {quantization} {dtype}"] = compare(folder, family, quantization, dtype)
    results["small"] = smallest_tensors()
    results["faults"] = {name: message_of(folder / name) for name in faulty_checkpoints(folder)}
    return results


def compare(folder: Path, family: str, quantization: str, dtype: str) -> dict[str, bool]:
    """Whole against sharded: state, forward, gradients; each entry must be True."""
    config = BackboneConfig(
        name_or_path=str(folder / family), quantization=quantization, dtype=dtype, int8_threshold=2.0
    )
    whole = load_backbone(config, zero_config=None, device=CPU, ranks=ranks())
    sharded = load_backbone(config, zero_config=zero_config(dtype, GLOBAL_BATCH), device=CPU, ranks=ranks())
    at_rest = all(held(p) == math.ceil(p.ds_numel / dist.get_world_size()) for p in sharded.parameters())
    scales = {name: buffer.clone() for name, buffer in whole.named_buffers() if name.endswith("scale_bits")}
    engine = start_engine(Prompted(sharded), dtype, GLOBAL_BATCH)
    reference = Prompted(whole)
    ids = torch.randint(4, 300, (GLOBAL_BATCH, 7), generator=torch.Generator().manual_seed(2))
    expected, scores = reference(ids), engine(ids)
    freed_after_forward = gathered_elements(engine.module.backbone) == 0
    expected.square().mean().backward()
    engine.backward(scores.square().mean())
    gradients = [
        torch.allclose(
            safe_get_full_grad(ours), theirs.grad.float(), rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6
        )
        for ours, theirs in ((engine.module.prompt, reference.prompt), (engine.module.head, reference.head))
    ]
    freed = gathered_elements(engine.module.backbone) == 0
    integers = all(p.dtype == torch.int8 for _, layer in quantized(sharded) for p in [layer.weight])
    experts = [p for p in sharded.parameters() if p.ds_shape is not None and len(p.ds_shape) == 3]
    integers &= all((not p.is_floating_point()) == (quantization != "none") for p in experts)
    return {
        "each rank holds its share": at_rest,
        "forward is equal bit for bit": torch.equal(expected, scores),
        "gradients are equal": all(gradients),
        "nothing stays gathered after forward": freed_after_forward,
        "nothing stays gathered after backward": freed,
        "weights are int8": integers,
        "scales of rows survive the engine": all(
            torch.equal(sharded.get_buffer(name), before) for name, before in scales.items()
        ),
        "scales of rows are buffers, of blocks are not": quantization.startswith("int8") == bool(scales),
        "something is quantized": (quantization == "none") == (not list(quantized(sharded))),
        "weights are equal": equal_weights(whole, sharded),
    }


def train(backbone_folder: Path) -> list[float]:
    """Loss of 10 steps on fixed batches, averaged over ranks, with checkpointing.

    Of a mixture, ranks send their texts to other experts.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    config = BackboneConfig(name_or_path=str(backbone_folder), quantization="int8", dtype="float32")
    settings = zero_config("float32", GLOBAL_BATCH // world)
    backbone = load_backbone(config, zero_config=settings, device=CPU, ranks=ranks())
    checkpoint_layers(backbone)
    engine = start_engine(Prompted(backbone), "float32", GLOBAL_BATCH // world)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(10):
        ids = torch.randint(4, 300, (GLOBAL_BATCH, 7), generator=generator).chunk(world)[rank]
        loss = nn.functional.softplus(engine(ids) * (2 * (ids[:, 0] % 2) - 1)).mean()
        engine.backward(loss)
        engine.step()
        mean = loss.detach() / world
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def unevenly(backbone_folder: Path) -> bool:
    """Two steps in which one rank's token hits few experts and the others' tokens hit more: no rank is out of step."""
    config = BackboneConfig(name_or_path=str(backbone_folder), quantization="int8", dtype="float32")
    backbone = load_backbone(config, zero_config=zero_config("float32", 1), device=CPU, ranks=ranks())
    prompted = Prompted(backbone)
    prompted.prompt.data = prompted.prompt.data[:1]
    engine = start_engine(prompted, "float32", 1)
    for _ in range(2):
        ids = torch.full((1, 1), 7) if dist.get_rank() == 0 else torch.arange(4, 44).unsqueeze(0)
        engine.backward(engine(ids).square().mean())
        engine.step()
    return True


def smallest_tensors() -> bool:
    """Tensors with fewer elements than ranks: some ranks hold padding only, and gathering gives the tensor back."""
    partitioner = Partitioner(zero_config("float32", 1), CPU)
    for values in (torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[6.0]])):
        parameter = partitioner.filled(values.shape, values.dtype, lambda first, last: values[first:last])  # noqa: B023
        with deepspeed.zero.GatheredParameters([parameter]):
            if not torch.equal(parameter.data, values):
                return False
    return True


def faulty_checkpoints(folder: Path) -> list[str]:
    """Folders with a fault; those named `one-rank-*` have it only as the last rank sees them."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("fault-", "one-rank-")))


def message_of(path: Path) -> str:
    """The error that loading gives on this rank."""
    last = dist.get_rank() == dist.get_world_size() - 1
    seen = path / ("last" if last else "others") if path.name.startswith("one-rank-") else path
    config = BackboneConfig(name_or_path=str(seen), quantization="int8", dtype="float32")
    try:
        load_backbone(config, zero_config=zero_config("float32", 1), device=CPU, ranks=ranks())
    except UserError as error:
        return str(error)
    return "no error"


def zero_config(dtype: str, batch: int) -> dict[str, Any]:
    """ZeRO-3 that keeps nothing gathered."""
    return {
        "train_micro_batch_size_per_gpu": batch,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0},
    }


def start_engine(module: nn.Module, dtype: str, batch: int) -> deepspeed.DeepSpeedEngine:
    """The engine over the trainable parameters."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=zero_config(dtype, batch))[0]


def quantized(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Its quantized layers by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def held(parameter: nn.Parameter) -> int:
    """Elements of a partitioned parameter that live on this rank."""
    return parameter.ds_tensor.numel() + parameter.data.numel()


def gathered_elements(model: nn.Module) -> int:
    """Elements alive beyond the partitions."""
    return sum(parameter.data.numel() for parameter in model.parameters() if not parameter.ds_persist)


def equal_weights(whole: nn.Module, sharded: nn.Module) -> bool:
    """Gathers each parameter and compares."""
    theirs = dict(whole.named_parameters())
    equal = []
    for name, parameter in sharded.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            equal.append(torch.equal(parameter.data, theirs[name].data))
    return all(equal)
