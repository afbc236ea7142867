"""What a small adapter is made from, without a backbone."""

import torch

from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import KeyValueShape
from pipeline.config import RunConfig, parse_config

FACTS = BackboneFacts("llama", 16, 2, (KeyValueShape(2, 4, 4),) * 2, 128, True)
LABELS = LabelStates(
    names=["sport", "a|b <x>"],
    hypotheses=["This text is about sport.", "This text is about `a|b`."],
    states=torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)),
    mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    fingerprint={"backbone": "x", "model.safetensors": "10 bytes, abc", "tokenizer": "tokens"},
)


def some_config(**backbone: str) -> RunConfig:
    return parse_config(
        {
            "run": {"dir": "runs/x"},
            "backbone": {"name_or_path": "somebody/some-model", "dtype": "float32"} | backbone,
            "data": {"train": "train.tsv", "text": "sentence", "max_length": 64},
            "method": {"name": "lt_prefix", "pooling": "scores", "head": "label_aware", "start": "random"},
        }
    )
