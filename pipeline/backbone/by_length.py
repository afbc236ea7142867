"""Prompts of unlike lengths, read in groups of like length, so that little padding is read with them."""

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


def read_by_length(read: Callable[[Injection, Tensor], Tensor], prompts: Injection, texts: int, spare: int) -> Tensor:
    """States [B * C, P, M] of prompts, C in a row behind each of B = `texts`; those of padding are arbitrary.

    `read(part, rows)` gives them, [R, P', M], of the prompts of these rows [R], as many behind each text, real tokens
    first. A pass more is made where it saves more than `spare` tokens of padding.
    """
    order = real_first(prompts.mask)
    content, mask = take(prompts.content, order), prompts.mask.gather(1, order)
    if mask.numel() <= spare:  # lengths are not even looked at, for which a GPU would wait
        states = read(Injection(mask, prompt=content), torch.arange(len(mask), device=mask.device))
        return take(states, order.argsort(dim=1))
    by_length = mask.sum(dim=1).view(texts, -1).sort(dim=1, descending=True, stable=True)
    lengths: list[int] = by_length.values.amax(dim=0).clamp(min=1).tolist()
    first = torch.arange(0, len(mask), len(lengths), device=mask.device).unsqueeze(1)
    found = []
    for group in groups_by_length(lengths, spare // texts):
        rows, width = (first + by_length.indices[:, group]).flatten(), lengths[group.start]
        states = read(Injection(mask[rows, :width], prompt=content[rows, :width]), rows)
        states = functional.pad(states, (0, 0, 0, mask.shape[1] - width))
        found.append(states.unflatten(0, (texts, -1)))
    places = (first + by_length.indices.argsort(dim=1)).flatten()
    return take(torch.cat(found, dim=1).flatten(0, 1)[places], order.argsort(dim=1))


def groups_by_length(lengths: list[int], spare: int) -> list[slice]:
    """Cuts columns of these lengths, the longest first, where that saves more than `spare` tokens of padding."""

    def cut(start: int, stop: int) -> list[slice]:
        saved, place = max(((stop - at) * (lengths[start] - lengths[at]), at) for at in range(start, stop))
        return cut(start, place) + cut(place, stop) if saved > spare else [slice(start, stop)]

    return cut(0, len(lengths))
