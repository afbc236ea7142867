"""Which stored tensor fills which parameter: names and shapes checked before anything is read."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from pipeline.backbone.weights import FLOATS, Checkpoint, shortened
from pipeline.core.errors import UserError

logger = logging.getLogger(__name__)

HEADS = {"lm_head", "score", "classifier", "cls", "qa_outputs", "pooler", "embed_out", "lm_predictions", "predictions"}
"""Modules of task models that a backbone has no use for."""
OLD_BUFFERS = ("rotary_emb.inv_freq", "position_ids", "attn.bias", "attn.masked_bias", "attention.bias")
"""Ends of the names of constants that old checkpoints store and that models now compute."""


@dataclass(frozen=True)
class Source:
    """The stored tensor of a parameter; `transposed` where rows of the parameter are columns of the file."""

    stored_name: str
    transposed: bool = False


def match_names(model: PreTrainedModel, checkpoint: Checkpoint, *, first_layers: bool = False) -> dict[str, Source]:
    """Parameter or buffer name -> its source, for a model on meta *before* layers are replaced.

    `first_layers`: it is a model of the first layers alone, and tensors of those behind are not needed.

    Raises UserError listing every missing, unexpected or misshapen tensor, and for layouts that need conversion.
    """
    wanted = _wanted(model)
    stored = _renamed(model, checkpoint, wanted)
    unused = sorted(set(stored) - set(wanted))
    if first_layers:
        unused = [name for name in unused if not _is_cut(model, name, wanted)]
    if unexpected := [name for name in unused if not _is_head(model, checkpoint, name)]:
        raise UserError(f"{_origin(checkpoint)}: tensors that {type(model).__name__} lacks: {shortened(unexpected)}")
    if unused:
        logger.debug("not part of the backbone, not loaded: %s", shortened(unused))
    _check_complete(model, checkpoint, wanted, stored)
    _check_tensors(checkpoint, wanted, stored)
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {name: Source(stored[name], transposed=name in conv1d) for name in wanted if name in stored}


def _wanted(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and stored buffers by every name they have, tied ones under each of their names."""
    kept = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}


def _renamed(model: PreTrainedModel, checkpoint: Checkpoint, wanted: dict[str, Tensor]) -> dict[str, str]:
    """Model name -> stored name, by transformers' own rules for old names and for the prefix of task models."""
    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    stored: dict[str, str] = {}
    for stored_name in checkpoint.tensors:
        name, converter = rename_source_key(stored_name, renamings, converters, model.base_model_prefix, wanted)
        if converter is not None:
            raise UserError(
                f"{_origin(checkpoint)}: {stored_name} is stored in a layout that {type(model).__name__} does not use "
                "and that cannot be loaded in slices; this backbone is not supported"
            )
        stored[name] = stored_name
    return stored


def _is_cut(model: PreTrainedModel, name: str, wanted: dict[str, Tensor]) -> bool:
    """Whether a tensor belongs to a layer behind those that are kept: the first layer has one like it."""
    parts = name.split(".")
    firsts = [
        ".".join([*parts[:place], "0", *parts[place + 1 :]]) for place, part in enumerate(parts) if part.isdigit()
    ]
    return any(first in wanted or first.removeprefix(f"{model.base_model_prefix}.") in wanted for first in firsts)


def _is_head(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> bool:
    """Whether an unused tensor belongs to a task head, or to the constants that old versions stored."""
    prefix = f"{model.base_model_prefix}."
    beside_backbone = any(stored.startswith(prefix) for stored in checkpoint.tensors) and not name.startswith(prefix)
    return beside_backbone or name.removeprefix(prefix).partition(".")[0] in HEADS or name.endswith(OLD_BUFFERS)


def _check_complete(
    model: PreTrainedModel, checkpoint: Checkpoint, wanted: dict[str, Tensor], stored: dict[str, str]
) -> None:
    # A tied parameter is stored under one of its names; a buffer the checkpoint lacks keeps the value it was made with.
    filled = {id(tensor) for name, tensor in wanted.items() if name in stored}
    missing = [name for name, tensor in wanted.items() if isinstance(tensor, nn.Parameter) and id(tensor) not in filled]
    if missing:
        raise UserError(f"{_origin(checkpoint)}: {type(model).__name__} needs tensors it lacks: {shortened(missing)}")


def _check_tensors(checkpoint: Checkpoint, wanted: dict[str, Tensor], stored: dict[str, str]) -> None:
    faults = []
    for name, tensor in wanted.items():
        if name not in stored:
            continue
        found = checkpoint.tensors[stored[name]]
        if found.shape != tuple(tensor.shape):
            faults.append(f"{stored[name]} is {list(found.shape)}, config.json wants {list(tensor.shape)}")
        elif tensor.dtype in (torch.float16, torch.bfloat16, torch.float32) and found.dtype not in FLOATS:
            faults.append(f"{stored[name]} holds {found.dtype}, so the checkpoint is quantized already")
    if faults:
        raise UserError(f"{_origin(checkpoint)}: {shortened(faults, limit=4)}")


def _origin(checkpoint: Checkpoint) -> str:
    return str(checkpoint.files[0].parent)
