"""Which stored tensor fills which parameter: names and shapes checked before anything is read."""

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from pipeline.backbone.probe import is_encoder_decoder
from pipeline.backbone.weights import FLOATS, Checkpoint, shortened
from pipeline.core.errors import UserError

logger = logging.getLogger(__name__)

HEADS = {"lm_head", "score", "classifier", "cls", "qa_outputs", "pooler", "embed_out", "lm_predictions", "predictions"}
"""Modules of task models that a backbone has no use for."""
OLD_BUFFERS = ("rotary_emb.inv_freq", "position_ids", "attn.bias", "attn.masked_bias", "attention.bias")
"""Ends of the names of constants that old checkpoints store and that models now compute."""


@dataclass(frozen=True)
class Source:
    """Where the values of a parameter are stored."""

    stored: tuple[tuple[str, ...], ...]
    """One tensor, as it is: ((name,),). Of experts, for each of them the tensors that lie under each other in its
    matrix: ((w1 of expert 0, w3 of expert 0), (w1 of expert 1, ...), ...)."""
    of_experts: bool = False
    chunk: int = 0
    """Which of the equal parts it is, where several parameters lie under each other in one tensor."""
    chunks: int = 1
    transposed: bool = False
    """Rows of the parameter are columns of the file."""

    @property
    def names(self) -> list[str]:
        return [name for names in self.stored for name in names]


def match_names(model: PreTrainedModel, checkpoint: Checkpoint, *, first_layers: bool = False) -> dict[str, Source]:
    """Parameter or buffer name -> its source, for a model on meta *before* layers are replaced.

    `first_layers`: it is a model of the first layers alone, and tensors of those behind are not needed.

    Raises UserError listing every missing, unexpected or misshapen tensor, and for layouts that need conversion.
    """
    wanted = _wanted(model)
    stored = _renamed(model, checkpoint, wanted)
    unused = sorted(set(stored) - set(wanted))
    if first_layers:
        paths = [name.removeprefix(f"{model.base_model_prefix}.").split(".") for name in wanted]
        stems = {".".join(path[:place]) for path in paths for place in range(1, len(path))}
        unused = [name for name in unused if not _is_cut(model, name, stems)]
    if unexpected := [name for name in unused if not _is_head(model, checkpoint, name)]:
        raise UserError(f"{_origin(checkpoint)}: tensors that {type(model).__name__} lacks: {shortened(unexpected)}")
    if unused:
        logger.debug("not part of the backbone, not loaded: %s", shortened(unused))
    _check_complete(model, checkpoint, wanted, stored)
    _check_tensors(checkpoint, wanted, stored)
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {name: replace(stored[name], transposed=name in conv1d) for name in wanted if name in stored}


def _wanted(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and stored buffers by every name they have, tied ones under each of their names."""
    kept = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}


def _renamed(model: PreTrainedModel, checkpoint: Checkpoint, wanted: dict[str, Tensor]) -> dict[str, Source]:
    """Model name -> source, by transformers' own rules for old names, task models and other layouts."""
    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    stored: dict[str, Source] = {}
    experts: dict[str, dict[str, list[str]]] = {}
    for stored_name in checkpoint.tensors:
        name, pattern = rename_source_key(stored_name, renamings, converters, model.base_model_prefix, wanted)
        if pattern is None:
            stored[name] = Source(((stored_name,),))
            continue
        operations: list[Any] = by_pattern[pattern].operations
        match [(type(operation).__name__, getattr(operation, "dim", None)) for operation in operations]:
            case [("MergeModulelist", 0)] | [("MergeModulelist", 0), ("Concatenate", 1)]:
                experts.setdefault(name, {}).setdefault(pattern, []).append(stored_name)
            case [("Chunk", 0)]:
                targets = by_pattern[pattern].target_patterns
                for chunk, target in enumerate(targets):  # `name` is the first one's
                    source = Source(((stored_name,),), chunk=chunk, chunks=len(targets))
                    stored[name.replace(targets[0], target)] = source
            case _:
                raise UserError(
                    f"{_origin(checkpoint)}: {stored_name} is stored in a layout that {type(model).__name__} does not "
                    "use and that cannot be loaded in slices; this backbone is not supported"
                )
    for name, parts in experts.items():
        patterns = by_pattern[next(iter(parts))].source_patterns
        columns = [sorted(parts.get(pattern, []), key=_natural) for pattern in patterns]
        if len({len(column) for column in columns}) != 1:
            raise UserError(f"{_origin(checkpoint)}: some experts of {name} lack a tensor; fetch the files again")
        stored[name] = Source(tuple(zip(*columns, strict=True)), of_experts=True)
    return stored


def _natural(name: str) -> list[int]:
    """Experts in the order of their numbers."""
    return [int(number) for number in re.findall(r"\d+", name)]


def _is_cut(model: PreTrainedModel, name: str, stems: set[str]) -> bool:
    """Whether a tensor belongs to a layer behind those that are kept: there is a first layer, and none of its number.

    It need not be like the first layer, whose kind of attention, norms or experts may be another. `stems`: what the
    names of the model's tensors begin with.
    """
    parts = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    lists = [parts[:place] for place, part in enumerate(parts) if part.isdigit()]
    return any(".".join([*owner, "0"]) in stems and ".".join(parts[: len(owner) + 1]) not in stems for owner in lists)


def _is_head(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> bool:
    """Whether an unused tensor belongs to a task head, or to the constants that old versions stored."""
    if is_encoder_decoder(model.config) and name.startswith("decoder."):
        return True
    prefix = f"{model.base_model_prefix}."
    beside_backbone = any(stored.startswith(prefix) for stored in checkpoint.tensors) and not name.startswith(prefix)
    return beside_backbone or name.removeprefix(prefix).partition(".")[0] in HEADS or name.endswith(OLD_BUFFERS)


def _check_complete(
    model: PreTrainedModel, checkpoint: Checkpoint, wanted: dict[str, Tensor], stored: dict[str, Source]
) -> None:
    # A tied parameter is stored under one of its names; a buffer the checkpoint lacks keeps the value it was made with.
    filled = {id(tensor) for name, tensor in wanted.items() if name in stored}
    missing = [name for name, tensor in wanted.items() if isinstance(tensor, nn.Parameter) and id(tensor) not in filled]
    if missing:
        raise UserError(f"{_origin(checkpoint)}: {type(model).__name__} needs tensors it lacks: {shortened(missing)}")


def _check_tensors(checkpoint: Checkpoint, wanted: dict[str, Tensor], stored: dict[str, Source]) -> None:
    faults = []
    for name, tensor in wanted.items():
        if name not in stored:
            continue
        shape, first = _stored_shape(checkpoint, stored[name]), stored[name].names[0]
        kinds = {checkpoint.tensors[stored_name].dtype for stored_name in stored[name].names}
        if shape != tuple(tensor.shape):
            faults.append(f"{first} is {list(shape)}, config.json wants {list(tensor.shape)}")
        elif tensor.dtype in (torch.float16, torch.bfloat16, torch.float32) and not kinds <= FLOATS.keys():
            faults.append(f"{first} holds {', '.join(sorted(kinds))}, so the checkpoint is quantized already")
    if faults:
        raise UserError(f"{_origin(checkpoint)}: {shortened(faults, limit=4)}")


def _stored_shape(checkpoint: Checkpoint, source: Source) -> tuple[int, ...]:
    """Of the parameter, by its stored tensors. Where experts differ, as no parameter may be."""
    shapes = [[checkpoint.tensors[name].shape for name in names] for names in source.stored]
    if not source.of_experts:
        [[shape]] = shapes
        return shape if source.chunks == 1 else (shape[0] // source.chunks, *shape[1:])
    matrices = {(sum(shape[0] for shape in parts), *parts[0][1:]) for parts in shapes}
    return (len(shapes), *(matrices.pop() if len(matrices) == 1 else ()))


def _origin(checkpoint: Checkpoint) -> str:
    return str(checkpoint.files[0].parent)
