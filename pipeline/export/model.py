"""transformers' model of tokens with a linear layer, in which a classifier of texts is exact.

Its classes for whole texts are not: those of decoders have no bias in that layer and pool the last token alone, those
of encoders pool with layers of their own, which were never trained. A linear layer and pooling may change places, so
that pooling the logits of tokens gives the classifier's scores, whatever the pooling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from pipeline.backbone.pooling import pool
from pipeline.core.errors import UserError
from pipeline.data.batches import collate
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.engine.own_texts import OwnTexts

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a score, as a share of the largest score: rounding in another order of operations."""


def token_classifier(base: nn.Module, labels: Sequence[str], weight: Tensor, bias: Tensor) -> PreTrainedModel:
    """The model with the weights of `base`, a base model, without what PEFT put into it; and this layer [K, H], [K].

    UserError where transformers has no such class for the family.
    """
    config = _config(base, labels)
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise UserError(f"transformers has no model of tokens for {config.model_type}: it cannot be exported")
    model: PreTrainedModel = AutoModelForTokenClassification.from_config(config, dtype=base.dtype).eval()
    absent = model.base_model.load_state_dict(_untouched(base.state_dict()), strict=False).missing_keys
    if absent:
        raise UserError(f"transformers' model of tokens for {config.model_type} has weights of its own ({absent[0]})")
    set_layer(model, weight, bias)
    return model


def _config(base: Any, labels: Sequence[str]) -> Any:
    config = type(base.config).from_dict(base.config.to_dict())
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.num_labels = len(labels)
    return config


def set_layer(model: PreTrainedModel, weight: Tensor, bias: Tensor) -> None:
    """Sets the last layer, whatever the family calls it. UserError where there is more than that behind the base."""
    own = [
        module
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    if [isinstance(module, nn.Linear) and module.bias is not None for module in own] != [True]:
        raise UserError(
            f"transformers' model of tokens for {model.config.model_type} has other layers than a linear one behind "
            "the backbone, which were never trained: it cannot be exported"
        )
    layer = own[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def check_equal(loaded: LoadedAdapter, model: nn.Module) -> float:
    """How far the scores of the exported model, loaded as others load it, are from ours, on the hypotheses as texts.

    Raises UserError where they are not those of the adapter: others compute something else for this family.
    """
    with torch.no_grad():
        ours, theirs = _scores(loaded, model)
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    if not difference <= TOLERANCE[loaded.adapter.config.backbone.dtype]:
        raise UserError(
            f"the exported model computes other scores (by {difference:.2g}): this family reads an adapter of method "
            f"{loaded.adapter.config.method.name} otherwise there; nothing was written"
        )
    return difference


def _scores(loaded: LoadedAdapter, model: Any) -> tuple[Tensor, Tensor]:
    """Ours and theirs [N, K]."""
    adapter, hypotheses = loaded.adapter, loaded.adapter.labels.hypotheses
    texts = OwnTexts.of(loaded, loaded.pass_size)
    columns = 1 if adapter.config.data.text_pair is None else 2
    rows = texts.encode([[text] * columns for text in hypotheses])
    batch = collate(rows, texts.pad_token_id)
    logits = model(**{name: tensor.to(loaded.device) for name, tensor in batch.items()}).logits
    mask = batch["attention_mask"].to(loaded.device)
    pooled = pool(logits[:, -mask.shape[1] :].double(), mask, loaded.model.pooling)  # behind a prompt
    return torch.from_numpy(texts.scores(rows)).double(), pooled.cpu()


def _untouched(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a base model's state, what LoRA has not put in."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
