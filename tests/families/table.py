"""The table of docs/backbones.md: python -m tests.families.table prints it."""

import torch

from pipeline.backbone.experts import expert_weights
from pipeline.backbone.facts import TESTED, facts_of
from pipeline.backbone.injection import KeyValueShape
from pipeline.backbone.probe import empty_model
from tests.families.models import SAMPLE, TYPES, WITHOUT_PROMPT, config_of

HEAD = "| `model_type` | reads | prompt | prefix by | int8 | tried |\n|---|---|---|---|---|---|\n"
CARRIERS = {"cache": "cache", "attention": "attention function", "deberta": "wrapper", None: "-"}
KEPT_OUT = {"llama4_text": "all but experts", "jamba": "all but time steps", "mamba": "all but time steps"}
"""What stays in the compute dtype, beside embeddings and norms."""
SHARDED = {"qwen3_moe", "gpt_oss", "mixtral", "llama", "gpt2", "bert"}
"""Loaded and trained on several ranks by tests/backbone/test_sharded.py."""


def row(kind: str) -> str:
    """Of one type, as it is found without weights."""
    config = config_of(kind)
    facts = facts_of(config)
    experts = any(expert_weights(module) for module in empty_model(config, torch.float32).modules())
    cells = [
        kind,
        "decoder" if facts.is_decoder else "encoder",
        "-" if kind in WITHOUT_PROMPT else "yes",
        CARRIERS[facts.carrier] + _of_layers(facts.prefix_layers),
        KEPT_OUT.get(kind, "with experts" if experts else "yes"),
        _tried(kind),
    ]
    return f"| {' | '.join(cells)} |"


def _of_layers(layers: tuple[KeyValueShape | None, ...]) -> str:
    return ", in the attention layers" if None in layers else ""


def _tried(kind: str) -> str:
    often = "all tests" if kind in TESTED else "sample" if kind in SAMPLE else "campaign"
    return f"{often}, several ranks" if kind in SHARDED else often


if __name__ == "__main__":
    print(HEAD + "\n".join(map(row, sorted(TYPES))))
