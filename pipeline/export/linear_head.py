"""The head of a trained classifier as one linear layer, where it is one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.core.errors import UserError


def linear_head(name: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [K, H] and bias [K] of the method `name` with this state, in their own precision.

    Raises UserError where its scores are not a linear function of the pooled output.
    """
    if "head.similarity.log_scale" in state:
        raise UserError(
            "this adapter's head is label_aware: it adds a cosine of text and label, which a linear layer is not, and "
            "others' models have nothing but that: train with method.head=linear"
        )
    if "head.weight_bits" in state:
        weight, bias, prior = (state[f"head.{part}_bits"].view(torch.float64) for part in ("weight", "bias", "prior"))
        return weight, _without_prior(bias, prior, "method.head=linear")
    if name == "probe":
        bias = _without_prior(state["logits.bias"], state["prior_weight"], "method.prior=never")
        return state["logits.weight"], bias
    return state["head.logits.weight"], state["head.logits.bias"]


def _without_prior(bias: Tensor, weight: Tensor, instead: str) -> Tensor:
    if weight.item():
        raise UserError(
            "this adapter's probe adds a cosine of text and hypothesis, which a linear layer is not, and others' "
            f"models have nothing but that: train with {instead}"
        )
    return bias
