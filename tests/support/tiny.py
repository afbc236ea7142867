"""Tiny random models of every supported family and a real tokenizer, built in code: no network, no files."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # ids 0..3, as RoBERTa and OPT number them
PAD_ID = 1
VOCABULARY = 320

_CORPUS = [
    "The text has positive sentiment.",
    "The text has negative sentiment.",
    "This text is about sports, politics, business or science.",
    "a gripping film that never lets go",
    "the plot is thin and the jokes fall flat",
]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,  # wide, so that attention is far from uniform and a lost prefix shows
    "bos_token_id": 0,
    "pad_token_id": PAD_ID,
    "eos_token_id": 2,
}
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
_LLAMA = _SIZES | {"num_key_value_heads": 2}
_GEMMA = _LLAMA | {"head_dim": 8}
_FALCON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
_OPT = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 32,
    "max_position_embeddings": 128,
}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}

# name of the variant -> (model_type, config keys)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _SIZES),
    "roberta": ("roberta", _SIZES | {"max_position_embeddings": 130, "type_vocab_size": 1}),
    "deberta": ("deberta", _SIZES | _DEBERTA | {"type_vocab_size": 0}),
    "deberta_v2": (
        "deberta-v2",
        _SIZES
        | _DEBERTA
        | {"type_vocab_size": 0, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "llama": ("llama", _SIZES),
    "llama_gqa": ("llama", _LLAMA),
    "mistral": ("mistral", _LLAMA),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _GEMMA),
    "gemma": ("gemma", _GEMMA),
    "gemma2": ("gemma2", _GEMMA | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", _GEMMA | {"query_pre_attn_scalar": 8}),
    "falcon": ("falcon", _FALCON | {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False}),
    "falcon_40b": ("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}),
    "falcon_alibi": ("falcon", _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "opt": ("opt", _OPT),
    "opt_post_norm": ("opt", _OPT | {"do_layer_norm_before": False}),
    "opt_projected": ("opt", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", _SIZES),
}


DECODERS = [name for name, (kind, _) in FAMILIES.items() if kind not in ("bert", "roberta", "deberta", "deberta-v2")]
ENCODERS = [name for name in FAMILIES if name not in DECODERS]


def tiny_model(family: str, task: Any = AutoModel, **overrides: Any) -> PreTrainedModel:
    """The base model (no head) of a FAMILIES entry with fixed random weights, in float32 and eval mode.

    `task` is another auto class, e.g. AutoModelForCausalLM; `overrides` are config keys, e.g. `num_hidden_layers=3`.
    """
    # An earlier `start` with ZeRO-3 in this process would make transformers partition the new model.
    unset_hf_deepspeed_config()
    model_type, keys = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **_COMMON | keys | overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = task.from_config(config)
        for parameter in model.parameters():  # biases start at 0 and norms at 1: make each of them matter
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most VOCABULARY tokens: `<s> text </s>`, pairs `<s> a </s> b </s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=128,
    )


def save_tiny(path: Path, family: str, task: Any = AutoModel, **overrides: Any) -> Path:
    """Writes config, safetensors weights and tokenizer to the folder `path`, for `task` and AutoTokenizer."""
    tiny_model(family, task, **overrides).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
