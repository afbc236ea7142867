"""The case that is estimated: sizes of a run, from its config and its backbone's alone."""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import BackboneFacts, facts_of
from pipeline.core.bounds import MOST_RANKS
from pipeline.core.errors import UserError
from pipeline.data.batches import width
from pipeline.data.config import DataConfig, LabelsConfig
from pipeline.engine.config import EngineConfig
from pipeline.engine.deepspeed_config import resolve_deepspeed, zero_stage
from pipeline.engine.kept_states import kept_form
from pipeline.estimate.costs import Case
from pipeline.estimate.gpus import GPUS
from pipeline.estimate.inventory import Workload, take_inventory
from pipeline.estimate.sharding import ZeroSettings
from pipeline.methods import AnyMethodConfig, MethodConfig
from pipeline.methods.limits import candidate_count, check_injection
from pipeline.training.config import TrainConfig

ASSUMED_HYPOTHESIS_TOKENS = 16
"""Length of the longest hypothesis, where nobody has tokenized them yet."""


ASSUMED_LABELS = 2
"""K, where labels.names does not give it, and labels.texts has no more."""


@dataclass(frozen=True)
class Sections:
    """The sections of a run's config on which its memory and its time depend."""

    backbone: BackboneConfig
    data: DataConfig
    labels: LabelsConfig
    method: AnyMethodConfig
    train: TrainConfig
    engine: EngineConfig

    @property
    def label_count(self) -> int:
        """K where the config gives it, else 0. Not from labels.texts, which may word some labels and not others."""
        return len(self.labels.names or ())

    @property
    def assumed_labels(self) -> int:
        """K, where nobody gives it."""
        return max(ASSUMED_LABELS, len(self.labels.texts))

    @property
    def texts_of_step(self) -> int:
        """Of each rank."""
        return self.train.batch_size * self.train.gradient_accumulation

    @property
    def why_no_steps(self) -> str | None:
        """What keeps training from taking steps; None where it takes some."""
        if not self.method.takes_steps:
            return "the method takes none"
        return "train.max_steps is 0" if self.train.max_steps == 0 else None


def build_case(
    config: Sections,
    hf_config: PreTrainedConfig,
    world_size: int,
    gpu: str | None,
    bandwidth: float | None = None,
    hypothesis_tokens: int | None = None,
) -> Case:
    """What `pipeline.estimate.costs` works on. Texts count with their longest length, data.max_length.

    Without `gpu` its sizes alone mean something, and no time.
    """
    gpu = gpu or next(iter(GPUS))
    _check_options(world_size, gpu, bandwidth, hypothesis_tokens)
    facts = facts_of(hf_config, config.backbone)
    check_injection(config.method, facts)
    hypothesis_tokens = hypothesis_tokens or ASSUMED_HYPOTHESIS_TOKENS
    form = config.method.form
    rows, texts = _rows_per_text(config, world_size), _texts_of_pass(config, world_size)
    workload = Workload(
        rows=texts * rows,
        text_tokens=config.data.max_length,
        injected_tokens=config.method.injected_tokens(hypothesis_tokens),
        injects=config.method.injects,
        first_layer=0 if form is None else form.first_layer,
        texts_behind=texts if form is not None and form.is_behind else 0,
    )
    sizes = (facts, hypothesis_tokens, config.label_count or config.assumed_labels)
    with torch.device("meta"):
        method = config.method.build(*sizes)
    inventory = take_inventory(hf_config, config.backbone, workload, method)
    return Case(
        facts=facts,
        inventory=inventory,
        workload=workload,
        trainable=config.method.trainable_count(*sizes) + inventory.trained_elements,
        world_size=world_size,
        gpu=GPUS[gpu],
        zero=_zero_settings(config, world_size),
        sharded=zero_stage(_resolved(config, world_size)) == 3,
        zero_of_nodes=_preset(config, "multinode", world_size),
        accumulation=-(-config.texts_of_step // texts),
        texts=texts,
        label_elements=_label_elements(config.method, *sizes) * config.labels.most_hypotheses,
        shortlist_rows=texts if _is_read_alone(config) else 0,
        keeps_token_states=kept_form(config.method, config.train.keep_token_states) is not None,
        bytes_per_second=None if bandwidth is None else bandwidth * 1e9,
    )


def _label_elements(method: MethodConfig, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
    width = 0 if method.starts_from is None else method.starts_from.width(facts)
    return label_count * hypothesis_tokens * (facts.hidden_size + width)


def _check_options(world_size: int, gpu: str, bandwidth: float | None, hypothesis_tokens: int | None) -> None:
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu} is unknown: take one of {', '.join(GPUS)}")
    if not 1 <= world_size <= MOST_RANKS:
        raise UserError(f"--world-size {world_size}: give a number of GPUs from 1 to {MOST_RANKS:,}")
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise UserError(f"--bandwidth {bandwidth}: give GB/s per GPU, a finite number above 0")
    if hypothesis_tokens is not None and hypothesis_tokens < 1:
        raise UserError(
            f"hypothesis_tokens is {hypothesis_tokens}: give the length of the longest hypothesis, 1 or more"
        )


def _rows_per_text(config: Sections, world_size: int) -> int:
    return rows_per_text(config.method, config.train, config.label_count, config.labels.most_hypotheses, world_size)


def rows_per_text(
    method: MethodConfig, train: TrainConfig, label_count: int, hypotheses: int = 1, world_size: int = 1
) -> int:
    """Rows that a text takes in a training step, at most. UserError where that depends on labels nobody has named.

    `label_count`: K; 0: nobody knows; `hypotheses`: of a label.
    """
    labels = label_count or sys.maxsize
    joint = method.joint_readings(labels) or sys.maxsize
    if train.objective == "pairs":
        return min(hypotheses, joint)
    candidates = candidate_count(method, labels, train.candidates)
    if train.objective == "batch":
        candidates = min(labels, train.batch_size * train.gradient_accumulation * world_size)
    rows = min(candidates if candidates == sys.maxsize else candidates * hypotheses, joint)
    if rows == sys.maxsize:
        raise UserError("train.candidates=all: set labels.names, or the rows per text are unknown")
    return rows


def _texts_of_pass(config: Sections, world_size: int) -> int:
    """As training cuts a step into passes, of texts of the longest length."""
    tokens = config.train.tokens_per_batch
    if tokens is None:
        return config.train.batch_size
    readings = _rows_per_text(config, world_size) + _is_read_alone(config)
    return min(config.texts_of_step, max(1, tokens // readings // width(config.data.max_length)))


def _is_read_alone(config: Sections) -> bool:
    """Is a text read alone first, for a shortlist or a prompt? Not where its stored states are taken."""
    method = config.method
    shortlisted = method.joint_readings(config.label_count or sys.maxsize) is not None
    return shortlisted and method.reads_alone and not method.reads_stored


def _resolved(config: Sections, world_size: int) -> dict[str, Any]:
    return resolve_deepspeed(config.engine, config.train, config.backbone.dtype, world_size)


def _zero_settings(config: Sections, world_size: int) -> ZeroSettings:
    """The configured ZeRO-3 sizes; where another stage is configured, those of our preset."""
    resolved = _resolved(config, world_size)
    if zero_stage(resolved) != 3:
        return _preset(config, "bf16" if config.backbone.quantization == "none" else "int8", world_size)
    return ZeroSettings.of(resolved["zero_optimization"])


def _preset(config: Sections, name: str, world_size: int) -> ZeroSettings:
    engine = EngineConfig(deepspeed=f"ds_configs/zero3_{name}.json")
    return ZeroSettings.of(_resolved(replace(config, engine=engine), world_size)["zero_optimization"])


def gpu_here() -> str | None:
    """The GPU of this machine, where we know its figures; None without one."""
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    for name, gpu in GPUS.items():
        # Data sheets and drivers count memory differently, but not by so much.
        if name.partition("-")[0] in card.name.lower() and 0.85 < card.total_memory / gpu.memory_bytes < 1.15:
            return name
    return None
