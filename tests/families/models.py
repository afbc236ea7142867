"""Tiny random models of many types that transformers has, made in code: what makes a type special is in its sizes."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.backbone.probe import base_class

PAD_ID, VOCABULARY = 1, 320
_COMMON = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,  # wide, so that attention is far from uniform and a lost prefix shows
    "bos_token_id": 0,
    "pad_token_id": PAD_ID,
    "eos_token_id": 2,
}
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 8}
_POSITIONS_BEHIND_PADDING = _SIZES | {"max_position_embeddings": 130, "type_vocab_size": 1}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_GROUPED_ROUTING = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_LATENT = _SIZES | _EXPERTS | _GROUPED_ROUTING
_LATENT |= {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "n_shared_experts": 1}
_LATENT |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_LINEAR |= {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_RELATIVE |= {"type_vocab_size": 0}
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
_SLIDING_THEN_FULL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
_GEMMA_3N = _WIDE | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "laurel_rank": 4, "sliding_window": 64}
_GEMMA_3N |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": None}
_PER_LAYER_INPUT = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}

TYPES: dict[str, dict[str, Any]] = {
    # decoders whose layers are all alike
    **dict.fromkeys(["llama", "phi", "olmo", "olmo2", "granite", "cohere", "stablelm", "nemotron"], _GROUPED),
    **dict.fromkeys(["apertus", "arcee", "bitnet", "qwen2"], _GROUPED),
    **dict.fromkeys(["gemma", "glm", "glm4", "ernie4_5", "seed_oss", "hunyuan_v1_dense", "qwen3"], _WIDE),
    **dict.fromkeys(["persimmon", "biogpt", "gpt_neox"], _SIZES),
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0]},
    "gptj": _GPT | {"rotary_dim": 4},
    "codegen": _GPT | {"rotary_dim": 4},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT | {"multi_query": True},
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"max_position_embeddings": 128, "intermediate_size": 32},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 4},
    "falcon": _SIZES,
    "opt": _SIZES | {"word_embed_proj_dim": 16, "ffn_dim": 32},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},
    # decoders with a sliding window in some or all layers
    **dict.fromkeys(["mistral", "starcoder2", "phi3"], _GROUPED | {"sliding_window": 64}),
    **dict.fromkeys(["ministral", "ministral3"], _WIDE | {"sliding_window": 64}),
    **dict.fromkeys(["olmo3", "cohere2", "exaone4"], _GROUPED | _SLIDING_THEN_FULL),
    "modernbert-decoder": _SIZES,
    "gemma2": _WIDE | _SLIDING_THEN_FULL | {"query_pre_attn_scalar": 8},
    "gemma3_text": _WIDE | _SLIDING_THEN_FULL | {"query_pre_attn_scalar": 8},
    "gemma3n_text": _GEMMA_3N | _PER_LAYER_INPUT,
    "gemma4_text": _WIDE | _SLIDING_THEN_FULL | _PER_LAYER_INPUT,
    # mixtures of experts
    **dict.fromkeys(["mixtral", "phimoe", "olmoe", "granitemoe"], _GROUPED | _EXPERTS),
    **dict.fromkeys(["gpt_oss", "minimax_m2"], _WIDE | _EXPERTS),
    "qwen2_moe": _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": _WIDE | _EXPERTS | {"decoder_sparse_step": 1},
    "glm4_moe": _WIDE | _EXPERTS | _GROUPED_ROUTING,
    "ernie4_5_moe": _WIDE | _EXPERTS | {"moe_num_experts": 4, "moe_k": 2},
    "llama4_text": _WIDE | {"num_local_experts": 4, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 32},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    # decoders that have a recurrence in some or all layers
    "qwen3_next": _WIDE | _EXPERTS | _LINEAR | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": _WIDE | _LINEAR,
    "lfm2": _GROUPED | {"layer_types": ["conv", "full_attention"]},
    "bamba": _GROUPED | _MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": _WIDE | _MAMBA | {"mamba_d_ssm": 16, "mamba_d_head": 4},
    "granitemoehybrid": _GROUPED
    | _EXPERTS
    | _MAMBA
    | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "jamba": _GROUPED
    | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
    | {"expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
        "state_size": 8,
    },
    # encoders
    **dict.fromkeys(["bert", "bert-generation", "megatron-bert", "nomic_bert"], _SIZES),
    **dict.fromkeys(["xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text"], _POSITIONS_BEHIND_PADDING),
    **dict.fromkeys(["roberta", "jina_embeddings_v3", "mpnet"], _POSITIONS_BEHIND_PADDING),
    **dict.fromkeys(["electra", "albert"], _SIZES | {"embedding_size": 16}),
    "eurobert": _GROUPED,
    "ernie": _SIZES | {"task_type_vocab_size": 3},
    "rembert": _SIZES | {"input_embedding_size": 16, "output_embedding_size": 16},
    "modernbert": _SIZES | {"global_attn_every_n_layers": 2, "local_attention": 64},
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128},
    **dict.fromkeys(["deberta", "deberta-v2"], _SIZES | _RELATIVE),
    "t5": _T5,
    "umt5": _T5,
}
WITHOUT_PREFIX = {"albert", "mamba", "mamba2", "mpnet"}
WITHOUT_PROMPT = {"gemma3n_text", "gemma4_text"}
"""Each token has a second embedding, which a prompt lacks."""
SHOWS_NO_LAYERS = {"albert", "gemma3n_text", "gemma4_text", "mpnet"}
"""Or cannot be cut behind one."""
NO_SDPA = {"codegen", "gpt_neo", "gpt_oss", "gptj", "mamba", "mamba2", "megatron-bert", "mpnet", "mpt", "rembert"}
NO_SDPA |= {"bloom", "deberta", "deberta-v2", "gemma2"}
SAMPLE = ("qwen3_moe", "gpt_oss", "phi3", "deepseek_v3", "qwen3_5_text", "modernbert", "xlm-roberta", "t5", "mamba2")
"""One of each kind: for every run of the tests. The others are for the campaign."""


def config_of(kind: str, **overrides: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(kind, **_COMMON | TYPES[kind] | overrides)


def tiny_model(kind: str, attention: str | None = None, **overrides: Any) -> PreTrainedModel:
    """A model with fixed random weights, all of which matter, in float32 and eval mode."""
    unset_hf_deepspeed_config()
    config = config_of(kind, **overrides)
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = base_class(config)(config)
        for parameter in model.parameters():  # biases start at 0, norms at 1, and some experts as they come
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
            elif not parameter.any() or not parameter.isfinite().all() or parameter.abs().max() > 1e3:
                parameter.data.normal_(std=0.2)
    return model.eval()
