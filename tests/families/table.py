"""The table of docs/backbones.md: python -m tests.families.table prints it."""

import torch

from pipeline.backbone.experts import expert_weights
from pipeline.backbone.facts import TESTED, facts_of
from pipeline.backbone.injection import KeyValueShape
from pipeline.backbone.probe import empty_model
from tests.families.models import SAMPLE, TYPES, WITHOUT_PROMPT, config_of
from tests.families.test_end_to_end import RUNS

HEAD = (
    "| `model_type` | reads | prompt | prefix by | int8 | int4 | experts | tried |\n|---|---|---|---|---|---|---|---|\n"
)
CARRIERS = {"cache": "cache", "attention": "attention function", "deberta": "wrapper", None: "-"}
KEPT_OUT = {"llama4_text": "all but experts", "jamba": "all but time steps", "mamba": "all but time steps"}
"""What stays in the compute dtype, beside embeddings and norms."""
SHARDED = {"qwen3_moe", "gpt_oss", "mixtral", "llama", "gpt2", "bert"}
"""Loaded, and some trained, on several ranks by tests/backbone/test_sharded.py."""


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
        *[KEPT_OUT.get(kind, "yes")] * 2,  # what is kept out does not depend on the number of bits
        "yes" if experts or kind == "llama4_text" else "-",
        _tried(kind),
    ]
    return f"| {' | '.join(cells)} |"


def _of_layers(layers: tuple[KeyValueShape | None, ...]) -> str:
    return ", in the attention layers" if None in layers else ""


def _tried(kind: str) -> str:
    often = "all tests" if kind in TESTED else "sample" if kind in SAMPLE else "campaign"
    whole_run = [] if kind in TESTED or kind not in RUNS else ["whole runs"]
    return ", ".join([often, *whole_run, *(["several ranks"] if kind in SHARDED else [])])


if __name__ == "__main__":
    print(HEAD + "\n".join(map(row, sorted(TYPES))))
