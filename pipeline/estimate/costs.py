"""Memory per rank and time per step, from sizes alone; for a backbone sharded by ZeRO-3 and for a whole one per rank.

W ranks. A step is one optimizer step: `accumulation` forward and backward passes on every rank. All bytes are per rank.
Not counted: the CUDA context, allocator fragmentation and library workspaces; `USABLE` leaves room for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Literal

from pipeline.backbone.facts import BackboneFacts
from pipeline.estimate.gpus import (
    EFFICIENCY,
    GPUS_PER_NODE,
    NETWORK_BYTES_PER_SECOND,
    QUANTIZED_EFFICIENCY,
    USABLE,
    Gpu,
)
from pipeline.estimate.inventory import Inventory, Weight, Workload
from pipeline.estimate.sharding import (
    ZeroSettings,
    at_rest_bytes,
    backbone_traffic_bytes,
    forward_traffic_bytes,
    gather_buffer_bytes,
    gathered_bytes,
    second_copy_bytes,
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the worst moment of a step."""

    frozen: int
    """The backbone: this rank's shard, scales of rows, buffers, and small parameters that stay gathered."""
    gathered: int
    """Whole weights alive at once, and the buffer of one gathering."""
    dequantized: int
    """The largest quantized matrix in the compute dtype, for one product in backward."""
    activations: int
    injection: int
    """Prefix or prompt as produced and as picked for each row, and its gradient; keys and values of the texts that
    prompts are read behind."""
    labels: int
    """Label states, and what the labels' injections start from."""
    trainable: int
    gradients: int
    master: int
    """fp32 copies of the trainable parameters."""
    adam: int
    """Two fp32 moments."""
    buckets: int
    """The engine's buffer for reducing gradients."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Plan:
    """One way to hold the backbone."""

    backbone: Literal["sharded", "replicated"]
    checkpointing: bool
    memory: Memory
    communication_bytes: int
    """Received per rank and step."""
    communication_seconds: float
    compute_seconds: float
    per_node: bool = False
    """Sharded once more within each node (ZeRO++ hpZ): no weight crosses the network."""

    @property
    def step_seconds(self) -> float:
        """Gathering runs ahead of the computation, so the longer of the two counts."""
        return max(self.communication_seconds, self.compute_seconds)


@dataclass(frozen=True)
class Case:
    """Everything an estimate is made from."""

    facts: BackboneFacts
    inventory: Inventory
    workload: Workload
    trainable: int
    """Trainable elements."""
    world_size: int
    gpu: Gpu
    zero: ZeroSettings
    accumulation: int = 1
    texts: int = 0
    """Of one pass."""
    label_elements: int = 0
    """Of label states and of what injections start from: K * P * (H + W)."""
    shortlist_rows: int = 0
    """Texts that are read without an injection before each pass, forward only (the shortlist of label tuning)."""
    keeps_token_states: bool = False
    """Are the layers that read a text before an injection comes run once for all epochs?"""
    sharded: bool = True
    """Does the config shard the backbone?"""
    zero_of_nodes: ZeroSettings | None = None
    """Those of our preset for several nodes."""
    bytes_per_second: float | None = None
    """Interconnect per rank; None: the GPU's own link within a node, NETWORK_BYTES_PER_SECOND beyond."""


def plans(case: Case) -> list[Plan]:
    """All four ways, the simplest first: replicated or sharded, each without and with activation checkpointing."""
    return [_plan(case, sharded, checkpointing) for sharded in (False, True) for checkpointing in (False, True)]


def plans_of_nodes(case: Case) -> list[Plan]:
    """Two more where there are several whole nodes: sharded once more within each, without and with checkpointing."""
    nodes = case.zero_of_nodes
    if nodes is None or case.zero.node_ranks > 1 or case.world_size % nodes.node_ranks:
        return []
    if case.world_size <= GPUS_PER_NODE:
        return []
    return [_plan(replace(case, zero=nodes), True, checkpointing) for checkpointing in (False, True)]


def configured_plan(case: Case, checkpointing: bool) -> Plan:
    """What the config says, as it stands."""
    return _plan(case, case.sharded, checkpointing)


def best_plan(case: Case) -> Plan | None:
    """The fastest that fits; among equals the one that communicates least, then the simplest; None if nothing fits."""
    every = [*plans(case), *plans_of_nodes(case)]
    fitting = [plan for plan in every if plan.memory.total <= USABLE * case.gpu.memory_bytes]
    return min(fitting, key=lambda plan: (plan.step_seconds, plan.communication_seconds), default=None)


def fits_offloaded(case: Case) -> bool:
    """Does what is left fit, once the backbone at rest lies in host memory?"""
    inventory, memory = case.inventory, _plan(case, True, True).memory
    fetched = gathered_bytes(inventory, case.zero) + gather_buffer_bytes(inventory, case.zero)
    left = memory.total - memory.frozen - memory.gathered + inventory.buffer_bytes + fetched
    return left <= USABLE * case.gpu.memory_bytes


def _plan(case: Case, sharded: bool, checkpointing: bool) -> Plan:
    received = _communication_bytes(case, sharded, checkpointing)
    within_node = case.world_size <= GPUS_PER_NODE or (sharded and case.zero.node_ranks > 1)
    speed = case.bytes_per_second or (case.gpu.link_bytes_per_second if within_node else NETWORK_BYTES_PER_SECOND)
    # Two operations per weight and token, forward and for the inputs' gradient; trained ones take two for their own.
    trained = _at_peak(case.inventory.trained)
    passes = (_at_peak(case.inventory.weights) + trained) * _layer_tokens(case, checkpointing)
    operations = 2 * (passes + trained * case.workload.tokens) * case.accumulation
    return Plan(
        backbone="sharded" if sharded else "replicated",
        checkpointing=checkpointing,
        memory=_memory(case, sharded, checkpointing),
        communication_bytes=received,
        communication_seconds=received / speed,
        compute_seconds=operations / case.gpu.flops,
        per_node=sharded and 1 < case.zero.node_ranks < case.world_size,
    )


def _at_peak(weights: Iterable[Weight]) -> float:
    """Numbers of the layers that a token runs through, as many as would take as long at the GPU's peak."""
    return sum(
        weight.numbers * weight.active / (QUANTIZED_EFFICIENCY if weight.quantized else EFFICIENCY)
        for weight in weights
        if weight.in_layer
    )


def _layer_tokens(case: Case, checkpointing: bool) -> float:
    """Tokens that run through the weights of all layers in a pass, forward or backward; through half of them: a half.

    The layers below the injection run once per text, forward only.
    """
    workload, below = case.workload, case.workload.first_layer / case.facts.layers
    upper = workload.tokens * (3 if checkpointing else 2) + _texts_read_once(case) * workload.text_tokens
    lower = 0 if case.keeps_token_states else case.texts * workload.text_tokens
    return (1 - below) * upper + below * lower


def _texts_read_once(case: Case) -> int:
    """Texts that the upper layers read without an injection in a pass; behind texts nothing else reads them."""
    if case.workload.texts_behind:
        return 0 if case.keeps_token_states else case.workload.texts_behind
    return case.shortlist_rows


def _memory(case: Case, sharded: bool, checkpointing: bool) -> Memory:
    inventory, world_size = case.inventory, case.world_size
    item_bytes, shard = inventory.compute_item_bytes, ceil(case.trainable / world_size)
    gathers = sharded and world_size > 1
    frozen, gathered = inventory.weight_bytes, 0
    if gathers:
        small = [weight for weight in inventory.weights if weight.elements <= case.zero.persistent]
        frozen = at_rest_bytes(inventory, world_size) + sum(w.elements * w.item_bytes for w in small)
        frozen += second_copy_bytes(inventory, case.zero, world_size)
        gathered = gathered_bytes(inventory, case.zero) + gather_buffer_bytes(inventory, case.zero)
    largest = max((weight.numbers for weight in inventory.weights if weight.quantized), default=0)
    return Memory(
        frozen=frozen + inventory.buffer_bytes,
        gathered=gathered,
        dequantized=largest * item_bytes,
        activations=inventory.checkpointed_activation_bytes if checkpointing else inventory.activation_bytes,
        injection=(3 * _injection_elements(case) + _kept_elements(case)) * item_bytes,
        labels=case.label_elements * item_bytes,
        trainable=(case.trainable + (shard if gathers else 0)) * item_bytes,
        gradients=case.trainable * item_bytes + shard * 4,
        master=shard * 4,
        adam=shard * 8,
        # ZeRO-2 fills a second bucket while the first is reduced.
        buckets=case.zero.reduce_bucket * item_bytes * (1 if sharded else 2),
    )


def _injection_elements(case: Case) -> int:
    facts, workload = case.facts, case.workload
    if workload.injects is None:
        return 0
    if workload.injects == "prompt":
        return workload.rows * workload.injected_tokens * facts.hidden_size
    return workload.rows * workload.injected_tokens * facts.prefix_width(workload.first_layer)


def _kept_elements(case: Case) -> int:
    """Keys and values of texts that prompts are read behind."""
    return case.workload.texts_behind * case.workload.text_tokens * case.facts.prefix_width()


def _communication_bytes(case: Case, sharded: bool, checkpointing: bool) -> int:
    """Backbone weights (sharded only), and for the trainable part: gradients reduced, new values gathered."""
    others = (case.world_size - 1) / case.world_size
    trainable = case.trainable * case.inventory.compute_item_bytes * others
    if not sharded:
        return int(trainable * (case.accumulation + 1))
    backbone = backbone_traffic_bytes(case.inventory, case.zero, case.world_size, checkpointing)
    if _texts_read_once(case):
        backbone += forward_traffic_bytes(case.inventory, case.zero, case.world_size)
    return int(case.accumulation * (backbone + 3 * trainable))
