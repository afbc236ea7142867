"""Sizes of a backbone, read from its config alone (no weights)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneFacts:
    """What the rest of the program needs to know of a backbone's shape."""

    family: str
    """`model_type` of the transformers config, e.g. llama."""
    hidden_size: int
    """H"""
    layers: int
    """L"""
    heads: int
    """N"""
    kv_heads: int
    """G, the heads an attention-cache entry has (1 for Falcon-7B; N where the model repeats keys before caching)."""
    head_dim: int
    """D"""
    max_positions: int | None
    """Largest number of tokens, prompt or prefix included; None where the model sets no bound (ALiBi)."""
    is_decoder: bool
    """Causal (True) or bidirectional (False)."""
