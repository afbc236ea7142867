"""What ZeRO-3 keeps, gathers and receives of a frozen backbone: bytes on one of W ranks."""

from dataclasses import dataclass
from math import ceil
from typing import Any

from pipeline.estimate.inventory import Inventory, Weight


@dataclass(frozen=True)
class ZeroSettings:
    """The sizes, in elements, that a DeepSpeed JSON sets for ZeRO-3; defaults are DeepSpeed's."""

    prefetch: int = 50_000_000
    live: int = 1_000_000_000
    persistent: int = 100_000
    reduce_bucket: int = 500_000_000
    node_ranks: int = 1
    """Ranks that share a second copy of the backbone among themselves (ZeRO++ hpZ); 1: none."""

    @classmethod
    def of(cls, zero_optimization: dict[str, Any]) -> "ZeroSettings":
        """From the `zero_optimization` section."""
        keys = {
            "prefetch": "stage3_prefetch_bucket_size",
            "live": "stage3_max_live_parameters",
            "persistent": "stage3_param_persistence_threshold",
            "reduce_bucket": "reduce_bucket_size",
            "node_ranks": "zero_hpz_partition_size",
        }
        return cls(**{name: int(zero_optimization[key]) for name, key in keys.items() if key in zero_optimization})


def at_rest_bytes(inventory: Inventory, world_size: int) -> int:
    """A rank's partitions of all backbone parameters: every tensor is padded to a multiple of W elements."""
    return sum(ceil(weight.elements / world_size) * weight.item_bytes for weight in inventory.weights)


def second_copy_bytes(inventory: Inventory, zero: ZeroSettings, world_size: int) -> int:
    """A rank's part of its node's own copy, from which a frozen backbone is gathered."""
    node_ranks = min(zero.node_ranks, world_size)
    return at_rest_bytes(inventory, node_ranks) if 1 < node_ranks < world_size else 0


def gathered_bytes(inventory: Inventory, zero: ZeroSettings) -> int:
    """Whole backbone weights alive at once when W > 1, at most.

    DeepSpeed fetches ahead while fewer than `live` elements are whole, parameter by parameter, so the last one may
    overshoot. Wide embeddings, needed at the very start, take their share of that limit first.
    """
    fetched = sorted(_partitioned(inventory, zero), key=lambda weight: (weight.in_layer, -weight.elements))
    largest = max((weight.elements for weight in fetched if weight.in_layer), default=0)
    left = zero.live + largest
    total = 0
    for weight in fetched:
        taken = min(weight.elements, left)
        total += taken * weight.item_bytes
        left -= taken
    return total


def forward_traffic_bytes(inventory: Inventory, zero: ZeroSettings, world_size: int) -> int:
    """Received by one rank in a forward pass alone: every partitioned weight once."""
    fetched = sum(weight.elements * weight.item_bytes for weight in _partitioned(inventory, zero))
    return int(fetched * _received_share(zero, world_size))


def backbone_traffic_bytes(inventory: Inventory, zero: ZeroSettings, world_size: int, checkpointing: bool) -> int:
    """Received by one rank in one forward and backward pass: weights come once for each, embeddings for forward only.

    What is whole when forward ends stays for backward, so `live` elements come once. Not so with checkpointing, where
    the recomputation's own fetches take the room; but a recomputed layer stays whole until its backward is done.
    """
    fetched = _partitioned(inventory, zero)
    in_layers = [weight for weight in fetched if weight.in_layer]
    elements = sum(weight.elements for weight in in_layers)
    layer_bytes = sum(weight.elements * weight.item_bytes for weight in in_layers)
    others = sum(weight.elements * weight.item_bytes for weight in fetched if not weight.in_layer)
    kept = 0.0 if checkpointing or not elements else min(1.0, zero.live / elements)
    return int((others + layer_bytes * (2 - kept)) * _received_share(zero, world_size))


def gather_buffer_bytes(inventory: Inventory, zero: ZeroSettings) -> int:
    """Several weights are gathered into one flat buffer and copied out of it."""
    in_layers = [weight for weight in _partitioned(inventory, zero) if weight.in_layer]
    if not in_layers:
        return 0
    item_bytes = max(weight.item_bytes for weight in in_layers)
    overshoot = max(weight.elements for weight in in_layers)
    return min(zero.prefetch + overshoot, sum(weight.elements for weight in in_layers)) * item_bytes


def _received_share(zero: ZeroSettings, world_size: int) -> float:
    """Of a gathered weight, what does not lie on the rank itself."""
    holders = min(zero.node_ranks, world_size) if zero.node_ranks > 1 else world_size
    return (holders - 1) / holders


def _partitioned(inventory: Inventory, zero: ZeroSettings) -> list[Weight]:
    """Weights that are gathered anew for every use."""
    return [weight for weight in inventory.weights if weight.elements > zero.persistent]
