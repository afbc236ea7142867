"""What an estimate tells a person: a table of memory, communication and time, and which plan to take."""

from dataclasses import replace

from pipeline.estimate.case import Sections
from pipeline.estimate.costs import USABLE, Case, Plan, best_plan, plans
from pipeline.methods.limits import window_warning

MOST_GPUS = 4096
"""As many as advice is given for."""


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


def report(config: Sections, case: Case, gpu: str) -> str:
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
    warning = window_warning(case.facts, workload.prompt_tokens, config.data.max_length)
    notes = [f"warning: {warning}", ""] if warning else []
    if not config.label_count:
        notes = [f"labels.names is not set: {config.assumed_labels} labels are assumed", "", *notes]
    table = [f"{row[0]:<26}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows]
    return "\n".join([*head, *table, "", *notes, advice(config, case, gpu)])


def advice(config: Sections, case: Case, gpu: str) -> str:
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


def _as_keys(plan: Plan, config: Sections) -> str:
    kind = "int8" if plan.backbone == "replicated" or config.backbone.quantization != "none" else "bf16"
    stage = 2 if plan.backbone == "replicated" else 3
    checkpointing = str(plan.checkpointing).lower()
    return f"engine.deepspeed=ds_configs/zero{stage}_{kind}.json backbone.gradient_checkpointing={checkpointing}"
