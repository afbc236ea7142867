"""Folders that plain transformers, or transformers and PEFT, load: each is loaded so and checked before it stays."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from pipeline.adapter.hub import SETTINGS
from pipeline.core.errors import UserError, first_line
from pipeline.core.files import write_json, write_text
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.export.card import export_card
from pipeline.export.linear_head import linear_head
from pipeline.export.model import check_equal, token_classifier
from pipeline.methods.text_classifier import TextClassifier

if TYPE_CHECKING:
    import peft

MODELS = ("probe", "full")
"""Methods that become a whole model of transformers."""
ADAPTERS = ("lora", "prompt", "p_tuning", "prefix")
"""Methods that become an adapter of PEFT."""


def save_model(loaded: LoadedAdapter, folder: Path) -> float:
    """Writes the whole model, its tokenizer and how to use it; gives how far its scores are from ours.

    Raises UserError where the classifier cannot be one of transformers' models.
    """
    _classifier(loaded).save_pretrained(folder)
    _save_tokenizer(loaded, folder)
    _write_use(loaded, folder, "transformers")
    again = AutoModelForTokenClassification.from_pretrained(folder, dtype=loaded.model.backbone.model.dtype)
    return check_equal(loaded, again.to(loaded.device).eval())


def save_peft(loaded: LoadedAdapter, folder: Path) -> float:
    """Writes an adapter of PEFT for the backbone where it is; gives how far its scores are from ours.

    Raises UserError where the classifier cannot be such an adapter.
    """
    import peft  # seconds

    backbone = loaded.adapter.config.backbone
    if backbone.layers is not None:
        raise UserError(
            f"backbone.layers={backbone.layers}: PEFT reads with all layers; only probe and full, whose "
            "models are written whole, can be exported with fewer"
        )
    config = _peft_config(loaded)
    config.base_model_name_or_path, config.revision = backbone.name_or_path, backbone.revision
    try:
        wrapped = peft.get_peft_model(_classifier(loaded), config)
    except ValueError as error:
        raise UserError(f"PEFT makes no such adapter for this family ({first_line(error)})") from error
    _set_trained(loaded, wrapped)
    wrapped.save_pretrained(str(folder))
    del wrapped
    _save_tokenizer(loaded, folder)
    _write_use(loaded, folder, "PEFT")
    untrained = _classifier(loaded, trained=False)
    return check_equal(loaded, peft.PeftModel.from_pretrained(untrained, str(folder)).to(loaded.device).eval())


def _classifier(loaded: LoadedAdapter, *, trained: bool = True) -> Any:
    """transformers' model with the adapter's head; or, as others begin, with another one."""
    adapter, base = loaded.adapter, loaded.model.backbone.model
    if adapter.config.backbone.quantization != "none":
        raise UserError(
            f"backbone.quantization={adapter.config.backbone.quantization}: others read the weights as they are, and "
            "would compute other scores: only adapters of a backbone with quantization=none can be exported"
        )
    if adapter.config.backbone.joined:
        raise UserError(
            f"backbone.layers={list(adapter.config.backbone.joined)}: others' models have the states of the last layer "
            "alone: train with a number or null"
        )
    if adapter.config.backbone.pooled > 1:
        raise UserError(
            f"backbone.pooling={adapter.config.backbone.pooling}: others' models give each token a score, of which no "
            "pooling makes the text's: train with mean, last or first"
        )
    weight, bias = linear_head(adapter.config.method.name, adapter.method_state)
    if not trained:
        weight, bias = torch.zeros_like(weight), torch.zeros_like(bias)
    model: nn.Module = token_classifier(base, loaded.labels, weight, bias)
    return model.to(loaded.device)


def _peft_config(loaded: LoadedAdapter) -> "peft.PeftConfig":
    """Of the adapter's method. p_tuning is exported as the prompt that its encoder makes."""
    import peft

    method: Any = loaded.adapter.config.method
    if method.name == "lora":
        wrapped = {name for name, _ in loaded.model.backbone.model.named_modules() if name.endswith(".base_layer")}
        leaves = sorted({name.split(".")[-2] for name in wrapped})
        targets = method.targets if isinstance(method.targets, list) else leaves
        ranks = {"r": method.rank, "lora_alpha": method.alpha, "lora_dropout": 0.0}
        return peft.LoraConfig(
            task_type="TOKEN_CLS", target_modules=targets, use_rslora=method.rank_stabilized, **ranks
        )
    if method.form is not None and method.form.first_layer:
        raise UserError(f"PEFT puts a prompt before the first layer: not with method.first_layer={method.first_layer}")
    if method.name in ("prompt", "p_tuning"):
        return peft.PromptTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=method.tokens)
    return _prefix_config(loaded)


def _prefix_config(loaded: LoadedAdapter) -> "peft.PeftConfig":
    """UserError where a cache of keys and values, PEFT's way, is not what the adapter was trained with."""
    import peft

    config, facts, model = loaded.adapter.config, loaded.model.backbone.facts, loaded.model.backbone.model
    method: Any = config.method
    shape = facts.prefix_layers[0]
    if shape is None or set(facts.prefix_layers) != {shape} or shape.key_dim != shape.value_dim:
        raise UserError("PEFT knows prefixes only where all layers' keys and values have one shape: not this backbone")
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        raise UserError(
            f"transformers' {model.config.model_type} takes no keys and values from outside, by which PEFT gives a "
            "model its prefix: only methods probe, full, lora, prompt and p_tuning can be exported from this backbone"
        )
    window, length = facts.sliding_window, config.data.max_length
    if facts.carrier == "attention" and window is not None and method.tokens + length > window:
        raise UserError(
            f"a sliding window of {window} positions is shorter than method.tokens={method.tokens} and "
            f"data.max_length={length}: here every token of a text sees the whole prefix, in PEFT it slides out of "
            f"sight: train with both together at most {window}"
        )
    return peft.PrefixTuningConfig(
        task_type="TOKEN_CLS",
        num_virtual_tokens=method.tokens,
        num_layers=len(facts.prefix_layers),
        num_attention_heads=shape.heads,
        token_dim=shape.heads * shape.key_dim,
    )


def _set_trained(loaded: LoadedAdapter, wrapped: Any) -> None:
    """Copies what was trained beside the head into PEFT's model."""
    method = loaded.model.method
    assert isinstance(method, TextClassifier)
    with torch.no_grad():
        if (injection := method.inject(1)) is not None:
            wrapped.prompt_encoder["default"].embedding.weight.copy_(injection.content[0])
            return
        prefix = f"base_model.model.{wrapped.base_model.model.base_model_prefix}."
        ours = {
            f"{prefix}{name.removeprefix('backbone.model.')}": tensor for name, tensor in loaded.model.inside().items()
        }
        theirs = {name: tensor for name, tensor in wrapped.named_parameters() if ".lora_" in name}
        if ours.keys() != theirs.keys():  # in a mixture of experts
            [name, *_] = sorted(ours.keys() ^ theirs.keys())
            raise UserError(
                f"PEFT does not adapt the layers of this family that were adapted here ({name.removeprefix(prefix)}): "
                "train with layers of attention alone in method.targets"
            )
        for name, tensor in ours.items():
            theirs[name].copy_(tensor)


def _save_tokenizer(loaded: LoadedAdapter, folder: Path) -> None:
    """As it reads texts here. Words around a text have special tokens of their own, which it must not read as text."""
    data = loaded.adapter.config.data
    if not data.special_tokens and data.template is None and not data.chat:
        # Where save_pretrained looks: what `load_tokenizer` has set is left out.
        loaded.tokenizer.init_kwargs["split_special_tokens"] = True
    loaded.tokenizer.save_pretrained(folder)


def _write_use(loaded: LoadedAdapter, folder: Path, library: str) -> None:
    """What others must know beside the weights."""
    config = loaded.adapter.config
    settings = {
        "labels": loaded.labels,
        "pooling": loaded.model.pooling,
        "max_length": config.data.max_length,
        "template": config.data.template,
        "chat": config.data.chat,
        "special_tokens": config.data.special_tokens,
        "pairs": config.data.text_pair is not None,
        "method": config.method.name,
    }
    write_json(folder / SETTINGS, settings)
    write_text(folder / "README.md", export_card(settings, library, config.backbone.name_or_path))
