"""The cache that holds a prefix: every layer sees its keys and values, and nothing is added to it."""

from typing import Any

import torch

from pipeline.backbone.prefix_cache import PrefixCache
from tests.support.tiny import tiny_model


def test_stores_nothing_but_the_prefix() -> None:
    """A forward call leaves the cache as it was, holding the caller's tensors, not copies."""
    prefix = torch.randn(2, 2, 1, 2, 3, 4)
    before = prefix.clone()
    layers = [(keys, values) for keys, values in prefix]
    cache = PrefixCache(layers, 2)
    model = tiny_model("llama_gqa")
    for _ in range(2):  # the second call sees the same prefix, not the first call's text
        hidden = model(torch.tensor([[5, 6, 7, 8]]), past_key_values=cache).last_hidden_state
        assert cache.get_seq_length() == 3
    again = model(torch.tensor([[5, 6, 7, 8]]), past_key_values=PrefixCache(layers, 2)).last_hidden_state
    assert torch.equal(hidden, again) and torch.equal(prefix, before)
    held: list[Any] = cache.layers
    for layer in held:
        assert layer.keys.shape == (1, 2, 3, 4)
        assert layer.keys.untyped_storage().data_ptr() == prefix.untyped_storage().data_ptr()


def test_takes_the_dtype_of_the_text() -> None:
    cache = PrefixCache([(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))], 1)
    text = torch.randn(1, 2, 5, 4, dtype=torch.bfloat16)
    keys, values = cache.update(text, text, 0)
    assert keys.dtype == values.dtype == torch.bfloat16 and keys.shape == (1, 2, 8, 4)
    assert torch.equal(keys[:, :, 3:], text)
