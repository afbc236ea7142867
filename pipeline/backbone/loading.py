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
from functools import lru_cache, partial
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn
from tqdm import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.experts import run_one_by_one
from pipeline.backbone.model_config import load_model_config
from pipeline.backbone.packed_weights import unpacked
from pipeline.backbone.partition import Partitioner
from pipeline.backbone.probe import base_class, build, probe
from pipeline.backbone.quantization import Quantized, quantize_layers
from pipeline.backbone.text_part import text_part
from pipeline.backbone.weight_names import Source, match_names
from pipeline.backbone.weights import Checkpoint, fingerprint, open_checkpoint
from pipeline.core.errors import UserError, first_line
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

    With `output_layer`, decoders come as the whole language model, whose output layer is never quantized; see
    `check_output_layer`.
    With `zero_config`, a DeepSpeed dict of stage 3 without "auto", every parameter is partitioned by ZeRO-3 and each
    rank reads its own share; with None every rank holds everything. Collective among `ranks`.
    `opened` and `read_config`: its files and its config.json, where they have been read before.
    Raises UserError, on every rank, for a checkpoint that is missing, damaged, unfit, quantized already or not the
    same on all ranks, and for weights that are not finite.
    """
    opened = opened or open_alike(config, ranks)
    model_config = deepcopy((read_config or partial(load_model_config, config))())
    checkpoint = ranks.on_every(lambda: unpacked(opened.checkpoint, model_config))
    dtype = config.torch_dtype
    model, sources = ranks.on_every(lambda: _build(config, model_config, checkpoint, output_layer))
    quantized = quantize_layers(model, config)
    if quantized or zero_config is not None:
        # transformers' own grouped products need an alignment that ZeRO-3 does not give (DeepSpeed's issue 8276).
        run_one_by_one(model)
    partitioner = Partitioner(zero_config, device)
    _move_buffers(model, device)
    share = _stored_bytes(checkpoint, sources) // partitioner.world_size
    with tqdm(total=share, **_BAR, disable=is_hidden(ranks.is_main)) as bar:
        rows = _Rows(checkpoint, sources, partitioner, bar)
        ranks.on_every(lambda: _fill(model, quantized, dtype, rows))
    if partitioner.world_size > 1:
        _share_scales(list(quantized.values()))
    if ranks.rank == 0:
        _report(model, config, quantized)
    return model.eval()


def open_alike(config: BackboneConfig, ranks: Ranks) -> OpenCheckpoint:
    """The model's checkpoint, equal on all ranks. Collective.

    Every rank opens it, since each node may see files of its own; the page cache reads them once for a node's ranks.
    Raises UserError, on every rank, where they see different files.
    """

    def open_here() -> OpenCheckpoint:
        checkpoint = text_part(open_checkpoint(config))
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
    if output_layer:
        check_output_layer(config, model_config)
    dtype = config.torch_dtype
    model_class = _model_class(model_config, output_layer)
    model_config.dtype = dtype
    if config.attention != "auto":
        model_config._attn_implementation = config.attention
    # Parameters only: buffers such as rotary frequencies are computed by the constructors and must be real.
    try:
        with init_empty_weights(include_buffers=False):
            model = build(model_class, model_config, dtype)
            if dtype != torch.float32:
                _set_buffers(model, build(model_class, model_config, torch.float32))
    except (ImportError, ValueError, KeyError) as error:
        if config.attention == "auto":
            raise
        raise UserError(f"backbone.attention={config.attention}: {first_line(error)}; set auto") from error
    model.tie_weights()
    model.requires_grad_(False)
    return model, match_names(model, checkpoint, first_layers=config.depth is not None)


def _set_buffers(model: PreTrainedModel, precise: nn.Module) -> None:
    """Gives a model of few bits the buffers of one in float32, rounded where its own have fewer bits.

    Its constructor computes in few bits also what it keeps in more (GPT-J's sines of positions), and its family may
    need some in float32 (DeepSeek's biases in the choice of experts). transformers loads them so.
    """
    in_float32 = [f".{name}." for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        found = precise.get_buffer(name)
        is_kept = any(each in f".{name}." for each in in_float32)
        setattr(model.get_submodule(owner), leaf, found if is_kept else found.to(buffer.dtype))


def check_output_layer(config: BackboneConfig, model_config: PreTrainedConfig) -> None:
    """UserError where a decoder's output layer would be given states of a middle layer, which it cannot read."""
    if config.depth is not None and _is_decoder(model_config):
        raise UserError(
            f"method zero_shot asks the whole language model, not its first {config.depth} layers: set "
            "backbone.layers=null (in a comparison, methods.zero_shot.backbone.layers)"
        )


def check_stored(config: BackboneConfig, model_config: PreTrainedConfig, checkpoint: Checkpoint) -> None:
    """UserError where its files lack a tensor of what `load_backbone` makes with `output_layer`. Reads headers only."""
    own = deepcopy(model_config)
    _build(config, own, unpacked(checkpoint, own), output_layer=True)


def _is_decoder(model_config: PreTrainedConfig) -> bool:
    return type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING and probe(model_config).is_causal


def _model_class(model_config: PreTrainedConfig, output_layer: bool) -> type[PreTrainedModel]:
    if output_layer and _is_decoder(model_config):
        return cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)])
    return base_class(model_config)


def _stored_bytes(checkpoint: Checkpoint, sources: dict[str, Source]) -> int:
    return sum(checkpoint.tensors[name].size for name in {name for source in sources.values() for name in source.names})


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            # On meta are only the scales of quantized layers: zero until their rows are read.
            on_meta = buffer.device.type == "meta"
            setattr(module, name, torch.zeros_like(buffer, device=device) if on_meta else buffer.to(device))


def _fill(model: PreTrainedModel, keepers: dict[str, Quantized], dtype: torch.dtype, rows: "_Rows") -> None:
    """Makes every parameter real, a tied one once, and reads the stored buffers."""
    scales = {keeper.scale_bits for keeper in keepers.values()}
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter not in scales:
            names_of.setdefault(parameter, []).append(name)
    for parameter, names in names_of.items():
        name = next(name for name in names if name in rows.sources)
        coder = _Coder(keepers[name], rows.partitioner.device) if name in keepers else None
        kept_as = parameter.dtype if coder is not None else dtype
        filled = rows.partitioner.filled(parameter.shape, kept_as, partial(rows.read, name, coder, dtype))
        for tied_name in names:
            owner, _, leaf = tied_name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, filled)
        if coder is not None and coder.keeper.storage.shards_scales:
            read_scales = partial(rows.read_scales, name, coder)
            coder.keeper.scale_bits = rows.partitioner.filled(coder.scale_bits.shape, torch.uint8, read_scales)
    for name, buffer in model.named_buffers():
        if name in rows.sources:
            count = len(buffer) if buffer.ndim else 1
            buffer.copy_(rows.read(name, None, buffer.dtype, 0, count).view_as(buffer))


class _Rows:
    """Reads rows of the model's tensors, checks them, and casts or quantizes them on the device."""

    def __init__(self, checkpoint: Checkpoint, sources: dict[str, Source], partitioner: Partitioner, bar: tqdm) -> None:
        self.checkpoint, self.sources, self.partitioner, self.bar = checkpoint, sources, partitioner, bar

    def read(self, name: str, coder: "_Coder | None", dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows [first, last) of tensor `name` in `dtype`, or as the codes of `coder`."""
        stored = self._stored(self.sources[name], first, last, for_codes=coder is not None)
        self.bar.update(stored.nbytes)
        if coder is None:
            return self._checked(name, stored, dtype, first)
        return coder.codes(self._checked(name, stored, torch.float16, first), first, last)

    def read_scales(self, name: str, coder: "_Coder", first: int, last: int) -> Tensor:
        """Scales of rows [first, last). A rank's shares of codes and of scales may end in other rows."""
        for row in (first + (~coder.is_read[first:last]).nonzero().flatten()).tolist():
            self.read(name, coder, torch.float16, row, row + 1)
        return coder.scale_bits[first:last]

    def _checked(self, name: str, stored: Tensor, dtype: torch.dtype, first: int) -> Tensor:
        rows = stored.to(self.partitioner.device, dtype)
        if not torch.isfinite(rows).all():
            source = self.sources[name]
            stored_name = source.stored[first if source.of_experts else 0][0]
            file = self.checkpoint.tensors[stored_name].file
            raise UserError(f"{file}: {stored_name} holds values that are not finite in {rows.dtype}")
        return rows

    def _stored(self, source: Source, first: int, last: int, for_codes: bool) -> Tensor:
        if source.of_experts:
            return torch.stack([torch.cat(list(map(self._whole, names))) for names in source.stored[first:last]])
        [stored_name] = source.names
        shape = self.checkpoint.tensors[stored_name].shape
        start = source.chunk * shape[0] // source.chunks if source.chunk else 0
        return self.checkpoint.read_rows(stored_name, start + first, start + last, source.transposed and for_codes)

    def _whole(self, stored_name: str) -> Tensor:
        return self.checkpoint.read_rows(stored_name, 0, self.checkpoint.tensors[stored_name].shape[0])


class _Coder:
    """Turns rows of one parameter into codes, and gathers their scales for as long as its rows are read."""

    def __init__(self, keeper: Quantized, device: torch.device) -> None:
        self.keeper, bits = keeper, keeper.scale_bits
        self.scale_bits = torch.empty_like(bits, device=device) if keeper.storage.shards_scales else bits
        self.is_read = torch.zeros(len(bits), dtype=torch.bool)

    def codes(self, rows: Tensor, first: int, last: int) -> Tensor:
        """Of rows [first, last)."""
        codes, self.scale_bits[first:last] = self.keeper.quantize(rows)
        self.is_read[first:last] = True
        return codes


def _share_scales(keepers: list[Quantized]) -> None:
    """Every rank gets the scales of all rows: each knows those of the rows it read, and has zeros for the others."""
    keepers = [keeper for keeper in keepers if not keeper.storage.shards_scales]
    if not keepers:
        return
    scales = torch.cat([keeper.scale_bits.flatten() for keeper in keepers])
    # As bit patterns: non-negative floats order as their bits do.
    dist.all_reduce(scales, op=dist.ReduceOp.MAX)
    for keeper, own in zip(keepers, scales.split([keeper.scale_bits.numel() for keeper in keepers]), strict=True):
        keeper.scale_bits.copy_(own.view_as(keeper.scale_bits))


@lru_cache
def say_kernel(name: str) -> None:
    """Once per process, not in each of its stages."""
    logger.info("backbone: attention by %s", name)


def _report(model: PreTrainedModel, config: BackboneConfig, keepers: dict[str, Quantized]) -> None:
    """Says what computes attention, what was quantized, and what was not, if anything was."""
    say_kernel(model.config._attn_implementation)
    if not keepers:
        return
    names = [name for name, _ in model.named_parameters() if not name.endswith("scale_bits")]
    patterns = Counter((name in keepers, re.sub(r"\d+", "*", name)) for name in names)
    for is_quantized, title in ((True, f"{config.quantization} weights"), (False, f"{config.dtype} parameters")):
        listed = [f"{name} x{count}" for (kind, name), count in patterns.items() if kind == is_quantized]
        if listed:
            logger.info("%s: %s", title, ", ".join(listed))
