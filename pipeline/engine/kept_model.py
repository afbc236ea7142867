"""The weights that one stage has loaded, kept for the next stages of the same command."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.backbone.partition import Partitioner
from pipeline.distributed.zero import own_share, whole_shape

Circumstances = tuple[Any, ...]
"""What a model was loaded for: it serves no other."""


class KeptModel:
    """A loaded model, as it was before any stage put hooks, an engine or trained layers on it.

    Its modules are copied, its weights are not: this rank's part of each is in memory once, however many models are
    made of it. So nothing that a stage does to its model reaches the next one's, unless it writes into frozen weights.
    """

    def __init__(self, model: PreTrainedModel, circumstances: Circumstances) -> None:
        """`model`: just loaded, partitioned by ZeRO-3 or whole."""
        self.circumstances = circumstances
        parameters = list(model.parameters())  # a tied one once
        absent = [_without_memory(parameter) for parameter in parameters]
        self._weights = list(zip(absent, map(own_share, parameters), strict=True))
        self._modules = _with_parameters(model, parameters, absent)

    def model(self, zero_config: dict[str, Any] | None, device: torch.device) -> PreTrainedModel:
        """A model of its own for a stage. Arguments as for `load_backbone`."""
        partitioner = Partitioner(zero_config, device)
        parameters = [partitioner.of_share(absent.shape, share) for absent, share in self._weights]
        return _with_parameters(self._modules, [absent for absent, _ in self._weights], parameters)


def _without_memory(parameter: nn.Parameter) -> nn.Parameter:
    empty = torch.empty(whole_shape(parameter), dtype=parameter.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False)


def _with_parameters(
    model: PreTrainedModel, parameters: list[nn.Parameter], others: list[nn.Parameter]
) -> PreTrainedModel:
    """A copy of the modules and buffers, with other parameters in the places of these."""
    return deepcopy(model, {id(parameter): other for parameter, other in zip(parameters, others, strict=True)})
