"""Published backbones, by their sizes alone, and what is estimated of them."""

from functools import cache
from typing import Any

from transformers import (
    BertConfig,
    BloomConfig,
    DebertaV2Config,
    FalconConfig,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from pipeline.config import RunConfig, parse_config
from pipeline.estimate.case import Sections, build_case
from pipeline.estimate.costs import Case
from tests.support.tiny_run import estimated

LLAMA_7B = LlamaConfig(vocab_size=32000)
LLAMA_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
)
LLAMA_405B = LlamaConfig(
    hidden_size=16384,
    intermediate_size=53248,
    num_hidden_layers=126,
    num_attention_heads=128,
    num_key_value_heads=8,
    vocab_size=128256,
)
FALCON_7B = FalconConfig(hidden_size=4544, num_hidden_layers=32, num_attention_heads=71, bias=False)
BLOOM_7B = BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880)
DEBERTA = DebertaV2Config(
    vocab_size=128100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    type_vocab_size=0,
    relative_attention=True,
    position_buckets=256,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
)
BACKBONES: dict[str, PreTrainedConfig] = {
    "llama-2-7b": LLAMA_7B,
    "llama-3-70b": LLAMA_70B,
    "llama-3-405b": LLAMA_405B,
    "falcon-7b": FALCON_7B,
    "bloom-7b1": BLOOM_7B,
    "bert-base": BertConfig(),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "deberta-v3-base": DEBERTA,
}


def run_config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "run": {"dir": "runs/test"},
        "backbone": {"name_or_path": "none", "quantization": "int8"},
        "data": {"train": "train.csv"},
        "method": {"name": "lt_prefix", "head": "linear"},
        "train": {"objective": "pairs"},
        "engine": {"deepspeed": "ds_configs/zero3_int8.json"},
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return parse_config(values)


def sections_of(**changes: dict[str, Any]) -> Sections:
    return estimated(run_config(**changes))


@cache
def case_of(name: str, quantization: str = "int8") -> Case:
    """A quantized backbone on one A100 with 80 GB."""
    return build_case(sections_of(backbone={"quantization": quantization}), BACKBONES[name], 1, "a100-80")
