"""A run directory with everything but the training: real stages on a tiny backbone, and an untrained adapter."""

from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.adapter.directory import save_adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import BackboneFacts, facts_of
from pipeline.config import RunConfig, parse_config
from pipeline.core.files import read_json
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import backbone_of
from pipeline.estimate.case import Sections
from pipeline.stages.encode_labels import current_label_states, encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.training.provenance import training_fingerprint
from tests.support.tiny import save_tiny, tiny_model

TEXTS = {
    "sport": ["the match ended late", "a goal in the last minute", "they won the cup", "a long season of games"],
    "business": [
        "shares fell on monday",
        "the bank raised its rate",
        "profit rose",
        "a merger of two firms was agreed",
    ],
    "science": [
        "the probe reached the moon",
        "a new cell was found",
        "stars are born in clouds",
        "they measured light",
    ],
}


def tiny_config(folder: Path, *, pairs: bool = False, **sections: dict[str, Any]) -> RunConfig:
    """Writes a tiny Llama and three splits to `folder`, and gives the config of a run on them."""
    # A stage started before in this process has announced ZeRO-3, and transformers would partition new models.
    unset_hf_deepspeed_config()
    if not (folder / "backbone").is_dir():
        save_tiny(folder / "backbone", "llama_gqa")
    for split, count in (("train", 4), ("validation", 2), ("test", 3)):
        rows = [(f"{text} {split}", label) for label, texts in TEXTS.items() for text in texts[:count]]
        if split == "train":
            rows.append(("one more match", "sport"))
        header = "text\tother\tlabel\n" if pairs else "text\tlabel\n"
        lines = [f"{text}\t{f'so {text}'}\t{label}" if pairs else f"{text}\t{label}" for text, label in rows]
        (folder / f"{split}.tsv").write_text(header + "\n".join(lines) + "\n")
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run")},
        "backbone": {"name_or_path": str(folder / "backbone"), "dtype": "float32"},
        "data": {split: str(folder / f"{split}.tsv") for split in ("train", "validation", "test")}
        | {"max_length": 64}
        | ({"text_pair": "other"} if pairs else {}),
        "method": {"name": "lt_prefix", "head": "label_aware"},
    }
    for name, section in sections.items():
        # Keys of one method mean nothing to another.
        values[name] = section if "name" in section else values.get(name, {}) | section
    return parse_config(values)


def label_states_of(config: RunConfig) -> LabelStates:
    """As `train` takes them."""
    names = read_json(config.run_dir.manifest_file)["labels"]
    backbone = backbone_of(config.backbone, config.data)
    run, method = config.run_dir, config.method
    return current_label_states(run, config.labels, config.data, names, backbone, Ranks.alone(), method)


def fingerprint_of_training(config: RunConfig, labels: LabelStates) -> dict[str, str]:
    """As `train` makes it."""
    sections = (config.method, config.train, config.backbone, config.run.seed)
    return training_fingerprint(*sections, read_json(config.run_dir.manifest_file), labels)


def estimated(config: RunConfig) -> Sections:
    """What `estimate` takes of a config."""
    return Sections(config.backbone, config.data, config.labels, config.method, config.train, config.engine)


def tiny_facts(backbone: BackboneConfig | None = None) -> BackboneFacts:
    return facts_of(tiny_model("llama_gqa").config, backbone)


def untrained_state(config: RunConfig, labels: LabelStates) -> dict[str, torch.Tensor]:
    """Random parameters, all of which matter (the head would start at zero)."""
    torch.manual_seed(1)
    method = config.method.build(tiny_facts(config.backbone), labels.hypothesis_tokens, len(labels.names))
    state = method.state_dict()
    return {name: x + 0.3 * torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}


def tiny_run(folder: Path, **keys: Any) -> RunConfig:
    """Runs preprocess and encode-labels, and saves an adapter with random parameters in the place of train."""
    config = tiny_config(folder, **keys)
    preprocess(config)
    labels = encode_labels(config)
    save_adapter(config.run_dir.adapter, untrained_state(config, labels), config.adapter_config(), labels)
    return config
