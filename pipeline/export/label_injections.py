"""lt_prompt and lt_prefix as one prompt, or one set of keys and values, per label: an adapter without the producer."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.adapter.directory import Adapter, save_adapter
from pipeline.adapter.label_states import START_PART
from pipeline.backbone.facts import BackboneFacts
from pipeline.core.errors import UserError
from pipeline.methods.label_injections import (
    LabelInjectionsConfig,
    LabelPrefixesConfig,
    LabelPromptsConfig,
    shared_keys,
)
from pipeline.methods.label_tuning import LabelTuning
from pipeline.methods.label_tuning_config import LabelTuningConfig

EXPORTED: dict[str, type[LabelInjectionsConfig]] = {"lt_prompt": LabelPromptsConfig, "lt_prefix": LabelPrefixesConfig}


def save_label_injections(adapter: Adapter, facts: BackboneFacts, folder: Path) -> None:
    """Writes an adapter directory whose label states have, as `start` [K, P, W], what enters the backbone.

    Raises UserError where the adapter does not fit a backbone of these sizes.
    """
    config, labels = adapter.config.method, adapter.labels
    assert isinstance(config, LabelTuningConfig)
    if labels.weights is not None:
        raise UserError(
            "this adapter's labels have several hypotheses, and an exported one has one injection for each: train with "
            "one hypothesis per label (labels.template, labels.texts)"
        )
    method = adapter.build_method(facts)
    assert isinstance(method, LabelTuning)
    with torch.no_grad():
        injection = method.inject(labels.states, labels.mask, labels.start)
    kept = EXPORTED[config.name]
    every_position = bool((injection.mask != labels.mask).any())
    stored = kept(**shared_keys(config, kept), every_position=every_position)
    made_from = {**labels.fingerprint, START_PART: str(stored.form)}
    start = (injection.content * injection.mask.unsqueeze(-1)).to(labels.states.dtype)
    state = {name: tensor for name, tensor in adapter.method_state.items() if not name.startswith("producer.")}
    save_adapter(
        folder,
        state,
        adapter.config.model_copy(update={"method": stored}),
        replace(labels, start=start, fingerprint=made_from),
    )
