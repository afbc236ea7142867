"""How likely a language model finds words, from the states that predict them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbone.injection import NO_TOKEN


def mean_log_probability(
    output: Callable[[Tensor], Tensor], cap: float | None, states: Tensor, words: Tensor
) -> Tensor:
    """Per token of words [R, Q], padded with NO_TOKEN, each predicted by a state [R, Q, M]: [R] float32.

    `output`: the output layer, [N, M] -> [N, vocabulary]; `cap`: what it is softly capped at (Gemma 2).
    """
    exists = words != NO_TOKEN
    logits = output(states[exists]).float()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    losses = functional.cross_entropy(logits, words[exists], reduction="none")
    return -losses.new_zeros(words.shape).masked_scatter(exists, losses).sum(dim=1) / exists.sum(dim=1)
