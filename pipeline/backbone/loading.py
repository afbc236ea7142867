"""Loading a frozen backbone: sharded as it is read, quantized as it comes, so that no rank ever holds all of it.

The model is built without memory for its parameters; then every parameter gets the rows this rank keeps, read from
safetensors files, cast or quantized, and handed to ZeRO-3. Without ZeRO-3 the same code keeps every row.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn
from tqdm import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.int8 import QuantizedLinear, quantized_like
from pipeline.backbone.model_config import load_model_config
from pipeline.backbone.partition import Partitioner
from pipeline.backbone.probe import base_class, build, probe
from pipeline.backbone.weight_names import Source, match_names
from pipeline.backbone.weights import Checkpoint, fingerprint, open_checkpoint
from pipeline.core.errors import UserError
from pipeline.core.progress import is_hidden
from pipeline.distributed.ranks import Ranks

logger = logging.getLogger(__name__)
_BAR: dict[str, Any] = {"desc": "loading backbone", "unit": "B", "unit_scale": True, "unit_divisor": 1024}


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose headers are read, and its `fingerprint`."""

    checkpoint: Checkpoint
    fingerprint: dict[str, str]


def load_backbone(
    config: BackboneConfig,
    *,
    zero_config: dict[str, Any] | None,
    device: torch.device,
    ranks: Ranks,
    output_layer: bool = False,
    opened: OpenCheckpoint | None = None,
    read_config: Callable[[], PreTrainedConfig] | None = None,
) -> PreTrainedModel:
    """The base model (no head) of `config`, frozen and in eval mode, on `device`.

    With `output_layer`, decoders come as the whole language model, whose output layer is never quantized.
    With `zero_config`, a DeepSpeed dict of stage 3 without "auto", every parameter is partitioned by ZeRO-3 and each
    rank reads its own share; with None every rank holds everything. Collective among `ranks`.
    `opened` and `read_config`: its files and its config.json, where they have been read before.
    Raises UserError, on every rank, for a checkpoint that is missing, damaged, unfit, quantized already or not the
    same on all ranks, and for weights that are not finite.
    """
    checkpoint = (opened or open_alike(config, ranks)).checkpoint
    read_config = read_config or partial(load_model_config, config)
    dtype = getattr(torch, config.dtype)
    model, sources = ranks.on_every(lambda: _build(config, deepcopy(read_config()), checkpoint, output_layer))
    quantized = _replace_linears(model, config, dtype) if config.quantization != "none" else {}
    partitioner = Partitioner(zero_config, device)
    _move_buffers(model, device)
    read_bytes = sum(checkpoint.tensors[name].size for name in {source.stored_name for source in sources.values()})
    with tqdm(total=read_bytes // partitioner.world_size, **_BAR, disable=is_hidden(ranks.is_main)) as bar:
        rows = _Rows(checkpoint, sources, partitioner, bar)
        ranks.on_every(lambda: _fill(model, quantized, dtype, rows))
    if partitioner.world_size > 1:
        _share_scales(list(quantized.values()))
    if ranks.rank == 0:
        _report(model, config, quantized)
    return model.requires_grad_(False).eval()


def open_alike(config: BackboneConfig, ranks: Ranks) -> OpenCheckpoint:
    """The model's checkpoint, equal on all ranks. Collective.

    Every rank opens it, since each node may see files of its own; the page cache reads them once for a node's ranks.
    Raises UserError, on every rank, where they see different files.
    """

    def open_here() -> OpenCheckpoint:
        checkpoint = open_checkpoint(config)
        return OpenCheckpoint(checkpoint, fingerprint(config, checkpoint))

    opened = ranks.on_every(open_here)
    seen = ranks.gather(opened.fingerprint)
    for rank, there in enumerate(seen):
        if there != seen[0]:
            differing = sorted(name for name in seen[0] | there if seen[0].get(name) != there.get(name))
            raise UserError(
                f"rank {rank} does not see the same {', '.join(differing)} of {config.name_or_path} as rank 0; "
                "give every node the same files"
            )
    return opened


def _build(
    config: BackboneConfig, model_config: PreTrainedConfig, checkpoint: Checkpoint, output_layer: bool
) -> tuple[PreTrainedModel, dict[str, Source]]:
    """The model with parameters on meta and true buffers, and where each of its tensors is stored."""
    checkpoint.check_unchanged()
    _refuse_quantized(config, model_config)
    dtype: torch.dtype = getattr(torch, config.dtype)
    model_class = _model_class(model_config, output_layer)
    model_config.dtype = dtype
    # Parameters only: buffers such as rotary frequencies are computed by the constructors and must be real.
    with init_empty_weights(include_buffers=False):
        model = build(model_class, model_config, dtype)
    model.tie_weights()
    return model, match_names(model, checkpoint, first_layers=config.layers is not None)


def _refuse_quantized(config: BackboneConfig, model_config: PreTrainedConfig) -> None:
    if getattr(model_config, "quantization_config", None) is not None:
        raise UserError(
            f"{config.name_or_path} is quantized already; give the original weights, which backbone.quantization turns "
            "into 8 bits"
        )


def _model_class(model_config: PreTrainedConfig, output_layer: bool) -> type[PreTrainedModel]:
    kind = type(model_config)
    if output_layer and kind in MODEL_FOR_CAUSAL_LM_MAPPING and probe(model_config).is_causal:
        found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        model_class: type[PreTrainedModel] = found
        return model_class
    return base_class(model_config)


def _replace_linears(model: PreTrainedModel, config: BackboneConfig, dtype: torch.dtype) -> dict[str, QuantizedLinear]:
    """Puts an unfilled quantized layer in the place of every linear one but the output layer; name -> layer."""
    layers = {}
    for name, module in list(model.named_modules()):
        if module is model.get_output_embeddings():
            continue
        layer = quantized_like(module, config.quantization, config.int8_threshold, dtype)
        if layer is not None:
            model.set_submodule(name, layer)
            layers[name] = layer
    return layers


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            # On meta are only the scales of quantized layers: zero until their rows are read.
            on_meta = buffer.device.type == "meta"
            setattr(module, name, torch.zeros_like(buffer, device=device) if on_meta else buffer.to(device))


def _fill(model: PreTrainedModel, layers: dict[str, QuantizedLinear], dtype: torch.dtype, rows: "_Rows") -> None:
    """Makes every parameter real, a tied one once, and reads the stored buffers."""
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    for parameter, names in names_of.items():
        name = next(name for name in names if name in rows.sources)
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner) if leaf == "weight" else None
        kept_as = parameter.dtype if layer is not None else dtype
        filled = rows.partitioner.filled(parameter.shape, kept_as, partial(rows.read, name, layer, dtype))
        for tied_name in names:
            owner, _, leaf = tied_name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, filled)
    for name, buffer in model.named_buffers():
        if name in rows.sources:
            count = len(buffer) if buffer.ndim else 1
            buffer.copy_(rows.read(name, None, buffer.dtype, 0, count).view_as(buffer))


class _Rows:
    """Reads rows of the model's tensors, checks them, and casts or quantizes them on the device."""

    def __init__(self, checkpoint: Checkpoint, sources: dict[str, Source], partitioner: Partitioner, bar: tqdm) -> None:
        self.checkpoint, self.sources, self.partitioner, self.bar = checkpoint, sources, partitioner, bar

    def read(self, name: str, layer: QuantizedLinear | None, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows [first, last) of tensor `name` in `dtype`, or as the codes of `layer`, whose scales are set."""
        source = self.sources[name]
        rows = self.checkpoint.read_rows(source.stored_name, first, last, source.transposed and layer is not None)
        self.bar.update(rows.nbytes)
        rows = rows.to(self.partitioner.device, dtype if layer is None else torch.float16)
        if not torch.isfinite(rows).all():
            file = self.checkpoint.tensors[source.stored_name].file
            raise UserError(f"{file}: {source.stored_name} holds values that are not finite in {rows.dtype}")
        if layer is None:
            return rows
        codes, layer.scale_bits[first:last] = layer.quantize(rows)
        return codes


def _share_scales(layers: list[QuantizedLinear]) -> None:
    """Every rank gets the scales of all rows: each knows those of the rows it read, and has zeros for the others."""
    if not layers:
        return
    scales = torch.cat([layer.scale_bits for layer in layers])
    # As bit patterns: non-negative floats order as their bits do.
    dist.all_reduce(scales, op=dist.ReduceOp.MAX)
    for layer, own in zip(layers, scales.split([layer.out_features for layer in layers]), strict=True):
        layer.scale_bits.copy_(own)


def _report(model: PreTrainedModel, config: BackboneConfig, layers: dict[str, QuantizedLinear]) -> None:
    """Says once what was quantized and what was not, if anything was."""
    if not layers:
        return
    weights = {f"{name}.weight" for name in layers}
    patterns = Counter((name in weights, re.sub(r"\d+", "*", name)) for name, _ in model.named_parameters())
    for is_quantized, title in ((True, f"{config.quantization} weights"), (False, f"{config.dtype} parameters")):
        listed = [f"{name} x{count}" for (kind, name), count in patterns.items() if kind == is_quantized]
        if listed:
            logger.info("%s: %s", title, ", ".join(listed))
