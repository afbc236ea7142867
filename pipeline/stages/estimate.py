"""Memory, time and communication of a run on any number of GPUs, from its config alone."""

import math
import sys
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from pipeline.backbone.facts import facts_of
from pipeline.backbone.inventory import Workload, take_inventory
from pipeline.backbone.model_config import load_model_config
from pipeline.config import RunConfig
from pipeline.engine.config import EngineConfig
from pipeline.engine.deepspeed_config import resolve_deepspeed, zero_stage
from pipeline.errors import UserError
from pipeline.escapes import visible
from pipeline.estimate import GPUS, USABLE, Case, Plan, ZeroSettings, best_plan, plans
from pipeline.limits import candidate_count, window_warning

ASSUMED_PROMPT_TOKENS = 16
"""Length of the longest hypothesis, where nobody has tokenised them yet."""
ASSUMED_LABELS = 2
"""K, where labels.names does not give it, and labels.texts has no more."""
MOST_GPUS = 4096
"""As many as advice is given for."""
MOST_RANKS = 1_000_000

MEMORY_ROWS = {
    "frozen": "backbone at rest",
    "gathered": "gathered weights",
    "dequantised": "dequantised matrix",
    "activations": "activations",
    "injection": "prefix or prompt",
    "trainable": "trainable parameters",
    "gradients": "gradients",
    "master": "fp32 master copy",
    "adam": "Adam moments",
    "buckets": "gradient buckets",
    "total": "total per rank",
}


def estimate(
    config: RunConfig,
    world_size: int = 1,
    gpu: str = "h200",
    bandwidth: float | None = None,
    prompt_tokens: int | None = None,
) -> list[Plan]:
    """Prints what each rank needs, sharded and replicated, with and without checkpointing, and which to take.

    `bandwidth`: interconnect in GB/s per GPU; `prompt_tokens`: P, the longest hypothesis. Only the backbone's
    config.json is read. Raises UserError for an unknown GPU or backbone.
    """
    case = build_case(config, load_model_config(config.backbone), world_size, gpu, bandwidth, prompt_tokens)
    print(visible(report(config, case, gpu), keep="\n"))
    return plans(case)


def build_case(
    config: RunConfig,
    hf_config: PreTrainedConfig,
    world_size: int,
    gpu: str,
    bandwidth: float | None = None,
    prompt_tokens: int | None = None,
) -> Case:
    """What `pipeline.estimate` works on. Texts count with their longest length, data.max_length."""
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu} is unknown: take one of {', '.join(GPUS)}")
    if not 1 <= world_size <= MOST_RANKS:
        raise UserError(f"--world-size {world_size}: give a number of GPUs from 1 to {MOST_RANKS:,}")
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise UserError(f"--bandwidth {bandwidth}: give GB/s per GPU, a finite number above 0")
    if prompt_tokens is not None and prompt_tokens < 1:
        raise UserError(f"prompt_tokens is {prompt_tokens}: give the length of the longest hypothesis, 1 or more")
    facts = facts_of(hf_config)
    prompt_tokens = prompt_tokens or ASSUMED_PROMPT_TOKENS
    workload = Workload(
        rows=config.train.batch_size * rows_per_text(config),
        text_tokens=config.data.max_length,
        prompt_tokens=config.method.injected_tokens(prompt_tokens),
        injects=config.method.injects,
    )
    sizes = (facts, prompt_tokens, _label_count(config) or _assumed_labels(config))
    with torch.device("meta"):
        method = config.method.build(*sizes)
    inventory = take_inventory(hf_config, config.backbone, workload, method.attach)
    return Case(
        facts=facts,
        inventory=inventory,
        workload=workload,
        trainable=config.method.trainable_count(*sizes) + inventory.trained_elements,
        world_size=world_size,
        gpu=GPUS[gpu],
        zero=_zero_settings(config, world_size),
        accumulation=config.train.gradient_accumulation,
        rows_alone=_rows_alone(config),
        bytes_per_second=None if bandwidth is None else bandwidth * 1e9,
    )


def report(config: RunConfig, case: Case, gpu: str) -> str:
    """The table and the advice as text; GB are 10^9 bytes."""
    found, workload = plans(case), case.workload
    head = [
        f"{config.backbone.name_or_path}: {case.inventory.elements:,} parameters, {config.backbone.quantization}"
        f" quantisation, {case.facts.layers} layers, width {case.facts.hidden_size}",
        f"{config.method.name}: {case.trainable:,} trainable parameters",
        f"{case.world_size} x {gpu}; {workload.rows} rows per rank and pass, {workload.text_tokens} text and"
        f" {workload.prompt_tokens} {workload.injects or 'injected'} tokens; {case.accumulation} passes per step",
        "",
    ]
    rows = [["GB per rank", *(plan.backbone for plan in found)]]
    rows.append(["", *("checkpointing" if plan.checkpointing else "" for plan in found)])
    rows += [[title, *(f"{getattr(p.memory, key) / 1e9:.2f}" for p in found)] for key, title in MEMORY_ROWS.items()]
    rows.append(["received per step, GB", *(f"{plan.communication_bytes / 1e9:.2f}" for plan in found)])
    rows.append(["communication, s per step", *(f"{plan.communication_seconds:.3f}" for plan in found)])
    rows.append(["computation, s per step", *(f"{plan.compute_seconds:.3f}" for plan in found)])
    warning = window_warning(config, case.facts, workload.prompt_tokens)
    notes = [f"warning: {warning}", ""] if warning else []
    if not _label_count(config):
        notes = [f"labels.names is not set: {_assumed_labels(config)} labels are assumed", "", *notes]
    table = [f"{row[0]:<26}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows]
    return "\n".join([*head, *table, "", *notes, advice(config, case, gpu)])


def advice(config: RunConfig, case: Case, gpu: str) -> str:
    """Which plan to take, as config keys; or how many GPUs it would need."""
    plan = best_plan(case)
    if plan is not None:
        needed, there = plan.memory.total / 1e9, case.gpu.memory_bytes / 1e9
        return f"advice: {_as_keys(plan, config)} ({needed:.1f} of {there:.0f} GB)"
    lacking = f"advice: nothing fits in {USABLE:.0%} of {case.world_size} x {gpu}"
    larger = case
    while larger.world_size < MOST_GPUS:
        larger = replace(larger, world_size=2 * larger.world_size)
        if plan := best_plan(larger):
            return f"{lacking}; on {larger.world_size}: {_as_keys(plan, config)}; or ds_configs/zero3_offload.json"
    return f"{lacking} or on more: lower train.batch_size or data.max_length, or take ds_configs/zero3_offload.json"


def _as_keys(plan: Plan, config: RunConfig) -> str:
    kind = "int8" if plan.backbone == "replicated" or config.backbone.quantization != "none" else "bf16"
    stage = 2 if plan.backbone == "replicated" else 3
    checkpointing = str(plan.checkpointing).lower()
    return f"engine.deepspeed=ds_configs/zero{stage}_{kind}.json backbone.gradient_checkpointing={checkpointing}"


def rows_per_text(config: RunConfig) -> int:
    """Rows that a text takes in a training step. Raises UserError where that depends on labels nobody has named."""
    if config.train.objective == "pairs":
        return 1
    labels = _label_count(config) or sys.maxsize
    rows = min(candidate_count(config, labels), config.method.joint_readings(labels) or sys.maxsize)
    if rows == sys.maxsize:
        raise UserError("train.candidates=all: set labels.names, or the rows per text are unknown")
    return rows


def _rows_alone(config: RunConfig) -> int:
    """Texts that label tuning reads for its shortlist in a pass."""
    shortlisted = config.method.joint_readings(_label_count(config) or sys.maxsize) is not None
    return config.train.batch_size if shortlisted and config.method.open_labels else 0


def _label_count(config: RunConfig) -> int:
    """K where the config gives it, else 0. Not from labels.texts, which may word some labels and not others."""
    return len(config.labels.names or ())


def _assumed_labels(config: RunConfig) -> int:
    return max(ASSUMED_LABELS, len(config.labels.texts))


def _zero_settings(config: RunConfig, world_size: int) -> ZeroSettings:
    """The configured ZeRO-3 sizes; where another stage is configured, those of our preset."""
    resolved = resolve_deepspeed(config, world_size)
    if zero_stage(resolved) != 3:
        preset = "bf16" if config.backbone.quantization == "none" else "int8"
        engine = EngineConfig(deepspeed=f"ds_configs/zero3_{preset}.json")
        resolved = resolve_deepspeed(config.model_copy(update={"engine": engine}), world_size)
    return ZeroSettings.of(resolved["zero_optimization"])
