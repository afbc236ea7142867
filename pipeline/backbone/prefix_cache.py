"""A read-only attention cache that carries trained prefix keys and values into the backbone."""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.backbone.injection import KeysValues, put_before


class _PrefixLayer(DynamicLayer):
    """One layer's prefix: `update` puts it before the new keys and values and stores nothing.

    Storing nothing makes the layer a pure function of its inputs, so activation checkpointing may run it twice.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """[B * C, G, T, D] keys and values of the text -> [B * C, G, P + T, D], the prefix of B rows in front."""
        assert self.keys is not None and self.values is not None
        return put_before(self.keys, key_states), put_before(self.values, value_states)


class PrefixCache(Cache):
    """What a `DynamicCache` filled with each layer's keys and values would be, but never written to.

    Gradients reach what it is given; the text's keys and values are not kept after their layer has run.
    """

    def __init__(self, prefix: KeysValues, layers: int):
        """`layers`: L of the backbone. Those below a prefix of fewer are not run, but asked for its length."""
        below = prefix[:1] * (layers - len(prefix))
        super().__init__(layers=[_PrefixLayer(keys, values) for keys, values in (*below, *prefix)])
