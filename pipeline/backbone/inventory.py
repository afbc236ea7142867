"""What a backbone's weights and activations weigh, found from its config alone.

The model is built, and run once, on fake tensors: they have shapes and types but no contents, so a 405B model takes
seconds and no memory, and every family is counted by its own code instead of by a formula of ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.backbone.config import BackboneConfig, Quantization
from pipeline.backbone.facts import BackboneFacts, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.linear import quantizable
from pipeline.errors import UserError

SCALE_BYTES = 4
"""One float32 per row of an int8 matrix, held whole by every rank."""


@dataclass(frozen=True)
class Weight:
    """One parameter as the loader stores it."""

    elements: int
    item_bytes: int
    in_layer: bool
    """Part of a transformer layer, so read again in backward; embeddings are not."""
    quantised: bool


@dataclass(frozen=True)
class Inventory:
    """A backbone's frozen state and the activations of one forward pass, in bytes."""

    weights: tuple[Weight, ...]
    buffer_bytes: int
    """Row scales and the model's own buffers, which ZeRO-3 does not partition."""
    layers: int
    compute_item_bytes: int
    activation_bytes: int
    """Kept by autograd between forward and backward, the injection's own tensors included."""
    checkpointed_activation_bytes: int
    """Layer inputs, and one layer's activations while it is recomputed."""

    @property
    def elements(self) -> int:
        return sum(weight.elements for weight in self.weights)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.elements * weight.item_bytes for weight in self.weights)


@dataclass(frozen=True)
class Workload:
    """One forward pass of one rank."""

    rows: int
    """(text, label) pairs, B."""
    text_tokens: int
    """T"""
    prompt_tokens: int
    """P"""
    injects: Literal["prefix", "prompt"] = "prefix"

    @property
    def tokens(self) -> int:
        """Tokens that run through every layer's matrices."""
        return self.rows * (self.text_tokens + (self.prompt_tokens if self.injects == "prompt" else 0))


def take_inventory(hf_config: PreTrainedConfig, config: BackboneConfig, workload: Workload) -> Inventory:
    """Builds and runs the backbone on fake tensors. Raises UserError for unsupported models and unknown layouts."""
    facts = facts_of(hf_config)
    dtype: torch.dtype = getattr(torch, config.dtype)
    with FakeTensorMode():
        model = AutoModel.from_config(hf_config, dtype=dtype, trust_remote_code=config.trust_remote_code).eval()
        weights, scale_bytes = _weights(model, config.quantization)
        backbone = FrozenBackbone(model, facts)
        saved = _saved_bytes(backbone, _inputs(facts, workload, dtype))
        checkpointed = FrozenBackbone(model, facts, gradient_checkpointing=True)
        boundaries = _saved_bytes(checkpointed, _inputs(facts, workload, dtype))
    return Inventory(
        weights=weights,
        buffer_bytes=scale_bytes + sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        layers=facts.layers,
        compute_item_bytes=dtype.itemsize,
        activation_bytes=saved,
        checkpointed_activation_bytes=boundaries + saved // facts.layers,
    )


def _weights(model: nn.Module, quantization: Quantization) -> tuple[tuple[Weight, ...], int]:
    """Every parameter once, and the bytes of the row scales."""
    if quantization not in ("none", "int8", "int8_weight_only"):
        raise UserError(f"backbone.quantization={quantization} has no estimate: take none, int8 or int8_weight_only")
    in_layers = {
        parameter
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for parameter in layer.parameters()
    }
    matrices = {module.weight: module for module in model.modules() if quantization != "none" and quantizable(module)}
    weights, scale_bytes = [], 0
    for parameter in model.parameters():
        quantised = parameter in matrices
        item_bytes = 1 if quantised else parameter.element_size()
        weights.append(Weight(parameter.numel(), item_bytes, parameter in in_layers, quantised))
        if quantised:
            # A Linear has one row per output, a Conv1D one column.
            outputs = parameter.shape[0 if isinstance(matrices[parameter], nn.Linear) else 1]
            scale_bytes += outputs * SCALE_BYTES
    return tuple(weights), scale_bytes


def _inputs(facts: BackboneFacts, workload: Workload, dtype: torch.dtype) -> tuple[Tensor, Tensor, Injection]:
    """Arguments of FrozenBackbone: input_ids [B, T], attention_mask [B, T] and a trained injection of B rows."""
    rows, prompt_tokens = workload.rows, workload.prompt_tokens
    input_ids = torch.zeros(rows, workload.text_tokens, dtype=torch.long)
    mask = torch.ones(rows, prompt_tokens, dtype=torch.bool)
    if workload.injects == "prompt":
        prompt = torch.empty(rows, prompt_tokens, facts.hidden_size, dtype=dtype, requires_grad=True)
        injection = Injection(mask=mask, prompt=prompt)
    else:
        shape = (facts.layers, 2, rows, facts.kv_heads, prompt_tokens, facts.head_dim)
        injection = Injection(mask=mask, prefix=torch.empty(shape, dtype=dtype, requires_grad=True))
    return input_ids, torch.ones_like(input_ids), injection


def _saved_bytes(backbone: FrozenBackbone, inputs: tuple[Tensor, Tensor, Injection]) -> int:
    """Bytes of the storages that autograd keeps for backward, each once, without the model's own tensors."""
    own = {tensor.untyped_storage()._cdata for tensor in [*backbone.parameters(), *backbone.buffers()]}
    # Holding each storage keeps its identity from being given to a later one.
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        backbone(*inputs)
    return sum(storage.nbytes() for storage in kept.values())
