"""Rotary embeddings whose frequencies depend on the length of what is read (longrope, dynamic NTK)."""

from collections.abc import Iterable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def follow_each_row(model: nn.Module) -> None:
    """Lets each row's frequencies follow its own length, as if it were read alone.

    transformers chooses them for a whole batch, by its longest row, and dynamic NTK by what was read before as well: a
    text's states, and its scores, would depend on its neighbours.
    """
    for module in model.modules():
        kinds = _kinds(getattr(module, "rope_type", None))
        if any(kind == "longrope" or "dynamic" in kind for kind in kinds):
            # On the instance: nothing else may call this module another way.
            module.forward = partial(_forward_by_row, module)


def _kinds(rope_type: str | dict[str, str] | None) -> Iterable[str]:
    """One for all layers, or one by the kind of layer."""
    if rope_type is None:
        return ()
    return (rope_type,) if isinstance(rope_type, str) else rope_type.values()


def _forward_by_row(
    rotary: nn.Module, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, ...]:
    """Cosines and sines [B, S, D] of `position_ids` [B, S], rows of equal length at a time."""
    lengths = position_ids.max(dim=1).values
    parts: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    for length in lengths.unique():
        rows = (lengths == length).nonzero().squeeze(1)
        parts.append((rows, type(rotary).forward(_fresh(rotary), x, position_ids[rows], *args, **kwargs)))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return tuple(torch.cat(values)[order] for values in zip(*(found for _, found in parts), strict=True))


def _fresh(rotary: nn.Module) -> nn.Module:
    """A copy with buffers of its own: a rotary embedding keeps the frequencies of what it read last.

    Not a deep copy, which would take along whatever an engine has hooked to the module.
    """
    fresh = copy(rotary)
    fresh._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in rotary._buffers.items()}
    return fresh
