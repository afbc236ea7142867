"""What is read behind texts, in groups of like length, so that little padding is read with it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbone.injection import Injection
from pipeline.backbone.padding import real_first, take

PASS_COST = {"cpu": 32, "cuda": 4096}
"""Tokens in whose time a device could begin another pass: as many are padded in one rather than read in two."""


def pass_cost(device: torch.device) -> int:
    """Of this device, in tokens."""
    return PASS_COST.get(device.type, PASS_COST["cuda"])


def prompts_by_length(
    read: Callable[[Injection, Tensor], Tensor], prompts: Injection, texts: int, spare: int
) -> Tensor:
    """States [B * C, P, M] of prompts, C in a row behind each of B = `texts`; those of padding are arbitrary.

    As `by_length`: `read(part, rows)` gives those of the prompts of these rows, real tokens first.
    """
    order = real_first(prompts.mask)
    content, mask = take(prompts.content, order), prompts.mask.gather(1, order)

    def read_rows(rows: Tensor, width: int) -> Tensor:
        return read(Injection(mask[rows, :width], prompt=content[rows, :width]), rows)

    return take(by_length(read_rows, mask, texts, spare), order.argsort(dim=1))


def by_length(read: Callable[[Tensor, int], Tensor], mask: Tensor, texts: int, spare: int) -> Tensor:
    """What is read of right-padded rows of tokens with the mask [B * C, P], C in a row behind each of B = `texts`.

    `read(rows, width)` gives it, [R] or states [R, width, M], for the first tokens of these rows [R], as many behind
    each text. A pass more is made where it saves more than `spare` tokens of padding.
    """
    if mask.numel() <= spare:  # lengths are not even looked at, for which a GPU would wait
        return read(torch.arange(len(mask), device=mask.device), mask.shape[1])
    columns = mask.sum(dim=1).view(texts, -1).sort(dim=1, descending=True, stable=True)
    lengths: list[int] = columns.values.amax(dim=0).clamp(min=1).tolist()
    first = torch.arange(0, len(mask), len(lengths), device=mask.device).unsqueeze(1)
    found = []
    for group in groups_by_length(lengths, spare // texts):
        width = lengths[group.start]
        part = read((first + columns.indices[:, group]).flatten(), width)
        if part.ndim == 3:
            part = functional.pad(part, (0, 0, 0, mask.shape[1] - width))
        found.append(part.unflatten(0, (texts, -1)))
    places = (first + columns.indices.argsort(dim=1)).flatten()
    return torch.cat(found, dim=1).flatten(0, 1)[places]


def groups_by_length(lengths: list[int], spare: int) -> list[slice]:
    """Cuts columns of these lengths, the longest first, where that saves more than `spare` tokens of padding."""

    def cut(start: int, stop: int) -> list[slice]:
        saved, place = max(((stop - at) * (lengths[start] - lengths[at]), at) for at in range(start, stop))
        return cut(start, place) + cut(place, stop) if saved > spare else [slice(start, stop)]

    return cut(0, len(lengths))
