"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from pipeline.training.config import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over exactly these parameters; weight decay on matrices only.

    An empty group would break ZeRO's bookkeeping (MakazhanAlpamys/Soup #336), so only groups with members exist.
    """
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if members
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of step 0, 1, ..., total_steps - 1: linear warm-up, then the schedule's decay to zero."""
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    factor = {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}
    return config.learning_rate * factor[config.schedule]
