"""What a backbone's weights and activations weigh, found from its config alone.

The model is built, and run once, on fake tensors: they have shapes and types but no contents, so a 405B model takes
seconds and no memory, and every family is counted by its own code instead of by a formula of ours.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.backbone.checkpointing import checkpoint_layers
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.experts import WITHOUT_CONTENTS, expert_weights
from pipeline.backbone.facts import BackboneFacts, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.probe import empty_model, make_fake
from pipeline.backbone.quantization import quantize_layers
from pipeline.core.errors import UserError
from pipeline.methods.base import TuningMethod


@dataclass(frozen=True)
class Weight:
    """One parameter as the loader stores it."""

    elements: int
    item_bytes: int
    in_layer: bool
    """Part of a transformer layer, so read again in backward; embeddings are not."""
    quantized: bool
    numbers: int
    """What it stands for: of 4-bit codes two per element, of their scales none."""
    active: float = 1.0
    """Share of it that a token runs through: of experts, those that it is sent to."""


@dataclass(frozen=True)
class Inventory:
    """A backbone's frozen state and the activations of one forward pass, in bytes."""

    parameters: int
    """Numbers in the backbone itself, however they are stored, frozen or not."""
    weights: tuple[Weight, ...]
    """The frozen ones."""
    buffer_bytes: int
    """Scales of rows and the model's own buffers, which ZeRO-3 does not partition."""
    layers: int
    compute_item_bytes: int
    activation_bytes: int
    """Kept by autograd between forward and backward, the injection's own tensors included."""
    checkpointed_activation_bytes: int
    """Layer inputs, and one layer's activations while it is recomputed."""

    trained: tuple[Weight, ...] = ()
    """What a method trains inside the backbone: of its own parameters, or beside them."""

    @property
    def trained_elements(self) -> int:
        return sum(weight.elements for weight in self.trained)

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
    injected_tokens: int
    """P"""
    injects: Literal["prefix", "prompt"] | None = "prefix"
    first_layer: int = 0
    """The lowest layer that reads the injection. Those below run once per text, without a gradient."""
    texts_behind: int = 0
    """Texts that are read once, without a gradient, and have prompts read behind them; 0: all rows are read whole."""

    @property
    def tokens(self) -> int:
        """Tokens that run through every layer's matrices, forward and backward."""
        if self.texts_behind:
            return self.rows * self.injected_tokens
        return self.rows * (self.text_tokens + (self.injected_tokens if self.injects == "prompt" else 0))


def take_inventory(
    hf_config: PreTrainedConfig,
    config: BackboneConfig,
    workload: Workload,
    method: TuningMethod | None = None,
) -> Inventory:
    """Builds and runs the backbone on fake tensors, with what a method made on meta puts into it and edits there.

    Raises UserError for unsupported models.
    """
    facts = facts_of(hf_config, config)
    dtype = config.torch_dtype
    model = empty_model(hf_config, dtype, experts=WITHOUT_CONTENTS)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        backbone = FrozenBackbone(model, facts)
        if method is not None:
            method.attach(model)
    editor = None if method is None or method.edits is None else method.to(dtype)
    with FakeTensorMode():
        make_fake(model)
        if editor is not None:
            make_fake(editor)
        saved = _saved_bytes(backbone, _inputs(facts, workload, dtype), workload, editor)
        checkpoint_layers(model)
        boundaries = _saved_bytes(backbone, _inputs(facts, workload, dtype), workload, editor)
        # Only now: autograd keeps as little of the quantized layers as of frozen linear ones.
        numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
        quantized = quantize_layers(model, config)
    return Inventory(
        parameters=parameters,
        weights=_weights(model, numbers, set(quantized), trained=False),
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        layers=facts.layers,
        compute_item_bytes=dtype.itemsize,
        activation_bytes=saved,
        checkpointed_activation_bytes=boundaries + saved // (facts.layers - workload.first_layer),
        trained=_weights(model, numbers, set(quantized), trained=True),
    )


def _weights(model: nn.Module, numbers: dict[str, int], quantized: set[str], *, trained: bool) -> tuple[Weight, ...]:
    """Every frozen or trained parameter, a tied one once. `numbers`: in each that the unquantized model has."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    modules: list[Any] = list(model.modules())
    active = {
        module.get_parameter(name): module.chosen / module.num_experts
        for module in modules
        for name in expert_weights(module)
    }
    return tuple(
        Weight(
            parameter.numel(),
            parameter.element_size(),
            parameter in in_layers,
            quantized=name in quantized,
            numbers=numbers.get(name, 0),
            active=active.get(parameter, 1.0),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad == trained
    )


def _inputs(facts: BackboneFacts, workload: Workload, dtype: torch.dtype) -> tuple[Tensor, Tensor, Injection | None]:
    """FrozenBackbone's arguments: input_ids and attention_mask [B, T], and a trained injection of B rows or None.

    Behind texts there are more rows of the injection than texts.
    """
    rows, injected_tokens = workload.rows, workload.injected_tokens
    input_ids = torch.zeros(workload.texts_behind or rows, workload.text_tokens, dtype=torch.long)
    mask = torch.ones(rows, injected_tokens, dtype=torch.bool)
    injection = None
    if workload.injects == "prompt":
        prompt = torch.empty(rows, injected_tokens, facts.hidden_size, dtype=dtype, requires_grad=True)
        injection = Injection(mask=mask, prompt=prompt)
    elif workload.injects == "prefix":
        width = facts.prefix_width(workload.first_layer)
        prefix = torch.empty(rows, injected_tokens, width, dtype=dtype, requires_grad=True)
        injection = Injection(mask=mask, prefix=prefix)
    return input_ids, torch.ones_like(input_ids), injection


def _saved_bytes(
    backbone: FrozenBackbone,
    inputs: tuple[Tensor, Tensor, Injection | None],
    workload: Workload,
    editor: TuningMethod | None = None,
) -> int:
    """Bytes of the storages that autograd keeps for backward, each once, without the model's and the method's own."""
    ids, mask, injection = inputs
    kept = backbone.keep(ids, mask) if workload.texts_behind else None
    trunk = backbone.trunk(ids, mask, workload.first_layer) if workload.first_layer else None
    modules = (backbone,) if editor is None else (backbone, editor)
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    own = {tensor.untyped_storage()._cdata for tensor in tensors}
    # Holding each storage keeps its identity from being given to a later one.
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        try:
            if kept is not None and injection is not None:
                backbone.behind(kept, injection, in_one=True)  # fake tensors have no lengths
            else:
                backbone(ids, mask, injection, trunk=trunk, edits=None if editor is None else editor.edits)
        except DynamicOutputShapeException as error:  # Gemma 3n and 4 look up which token each embedding is of
            raise UserError(
                f"{backbone.facts.family} reads a prompt by its values, so what that takes cannot be estimated: take a "
                "method that injects a prefix or nothing (lt_prefix, prefix, lora, probe)"
            ) from error
    return sum(storage.nbytes() for storage in saved.values())
