"""An estimate for people: a table of memory, communication and time, and which plan to take."""

from dataclasses import replace

from pipeline.estimate.case import Sections
from pipeline.estimate.costs import Case, Plan, best_plan, configured_plan, fits_offloaded, plans, plans_of_nodes
from pipeline.estimate.gpus import GPUS, USABLE
from pipeline.methods.limits import window_warning

MOST_GPUS = 4096
"""As many as advice is given for."""

TEXTS = 100_000
"""That time is given for, where nobody has counted the user's."""
NO_GPU = f"no GPU is known here, so nothing is said of time: estimate --gpu NAME plans for one of {', '.join(GPUS)}"

MEMORY_ROWS = {
    "frozen": "backbone at rest",
    "gathered": "gathered weights",
    "dequantized": "dequantized matrix",
    "activations": "activations",
    "injection": "prefix or prompt",
    "labels": "label states",
    "trainable": "trainable parameters",
    "gradients": "gradients",
    "master": "fp32 master copy",
    "adam": "Adam moments",
    "buckets": "gradient buckets",
    "total": "total per rank",
}


def report(config: Sections, case: Case, gpu: str | None, steps: int | None = None) -> str:
    """The table, the totals of the config as it stands, and advice, as text; GB are 10^9 bytes.

    Without `gpu`: what the memory is, and nothing of time. `steps`: of the whole training, where it is known.
    """
    found, workload = [*plans(case), *plans_of_nodes(case)], case.workload
    head = [
        f"{config.backbone.name_or_path}: {case.inventory.parameters:,} parameters, {config.backbone.quantization}"
        f" quantization, {case.facts.layers} layers, width {case.facts.hidden_size}",
        f"{config.method.name}: {case.trainable:,} trainable parameters",
        f"{case.world_size} x {gpu or 'rank'}; {workload.rows} rows per rank and pass, {workload.text_tokens} text and"
        f" {workload.injected_tokens} {workload.injects or 'injected'} tokens; {case.accumulation} passes per step",
        "",
    ]
    rows = [["GB per rank", *(plan.backbone for plan in found)]]
    if any(plan.per_node for plan in found):
        rows.append(["", *("and per node" if plan.per_node else "" for plan in found)])
    rows.append(["", *("checkpointing" if plan.checkpointing else "" for plan in found)])
    rows += [[title, *(f"{getattr(p.memory, key) / 1e9:.2f}" for p in found)] for key, title in MEMORY_ROWS.items()]
    rows.append(["received per step, GB", *(f"{plan.communication_bytes / 1e9:.2f}" for plan in found)])
    if gpu:
        rows.append(["communication, s per step", *(f"{plan.communication_seconds:.3f}" for plan in found)])
        rows.append(["computation, s per step", *(f"{plan.compute_seconds:.3f}" for plan in found)])
    table = [f"{row[0]:<26}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows]
    end = [*_totals(config, case, steps), "", advice(config, case, gpu)] if gpu else [NO_GPU]
    return "\n".join([*head, *table, "", *_notes(config, case), *end])


def _notes(config: Sections, case: Case) -> list[str]:
    injected = case.workload.injected_tokens
    warning = window_warning(config.method, case.facts, injected, config.data.max_length)
    notes = [f"warning: {warning}", ""] if warning else []
    if any(weight.active < 1 for weight in case.inventory.weights):
        notes = [_of_experts(case), "", *notes]
    if not config.label_count:
        notes = [f"labels.names is not set: {config.assumed_labels} labels are assumed", "", *notes]
    return notes


def _of_experts(case: Case) -> str:
    weights = (*case.inventory.weights, *case.inventory.trained)
    stored, active = case.inventory.parameters, sum(weight.numbers * weight.active for weight in weights)
    layer = sum(weight.elements * weight.item_bytes for weight in weights if weight.in_layer) / case.inventory.layers
    return (
        f"a mixture of experts: a token runs through {active / 1e9:.2f} of {stored / 1e9:.2f} billion weights; where "
        f"the backbone is sharded, a rank fetches whole layers, of {layer / 1e9:.2f} GB, whichever experts it needs"
    )


def _totals(config: Sections, case: Case, steps: int | None) -> list[str]:
    """Of the config as it stands, every text counted with its longest length."""
    if config.why_no_steps is not None:
        return [f"steps: none, {config.why_no_steps}"]
    plan = configured_plan(case, config.backbone.gradient_checkpointing)
    texts = config.texts_of_step * case.world_size
    kind = f"{plan.backbone}{', with' if plan.checkpointing else ', without'} checkpointing"
    speed = f"as configured ({kind}): {plan.step_seconds:.3g} s per step, {texts / plan.step_seconds:,.0f} texts/s"
    steps = steps or config.train.max_steps
    count = f"{steps:,} steps" if steps else f"every {TEXTS:,} texts (the dry run counts yours)"
    hours = (steps or TEXTS / texts) * plan.step_seconds / 3600
    cost = f"{count}: {hours:.3g} hours, {hours * case.world_size:.3g} GPU-hours, loading and evaluation not counted"
    fits = plan.memory.total <= USABLE * case.gpu.memory_bytes
    return [f"{speed}{'' if fits else '; it does not fit'}", cost]


def advice(config: Sections, case: Case, gpu: str) -> str:
    """Which plan to take, as config keys; or how many GPUs it would need."""
    plan = best_plan(case)
    if plan is not None:
        needed, there = plan.memory.total / 1e9, case.gpu.memory_bytes / 1e9
        return f"advice: {_as_keys(plan, config)} ({needed:.1f} of {there:.0f} GB, {plan.step_seconds:.3g} s per step)"
    lacking = f"advice: nothing fits in {USABLE:.0%} of {case.world_size} x {gpu}"
    ways = ["ds_configs/zero3_offload.json"] if fits_offloaded(case) else []
    larger = case
    while larger.world_size < MOST_GPUS:
        larger = replace(larger, world_size=2 * larger.world_size)
        if plan := best_plan(larger):
            return "; or ".join([f"{lacking}; on {larger.world_size}: {_as_keys(plan, config)}", *ways])
    activations = plans(case)[-1].memory.activations / 1e9
    key = "train.batch_size" if config.train.tokens_per_batch is None else "train.tokens_per_batch"
    smaller = f"lower {key} or data.max_length ({activations:.1f} GB of activations with checkpointing)"
    return f"{lacking} or on more: {', or take '.join([smaller, *ways])}"


def _as_keys(plan: Plan, config: Sections) -> str:
    if plan.per_node:
        file = "zero3_multinode"
    elif plan.backbone == "replicated":
        file = "zero2_int8"
    else:
        file = "zero3_int8" if config.backbone.quantization != "none" else "zero3_bf16"
    checkpointing = str(plan.checkpointing).lower()
    return f"engine.deepspeed=ds_configs/{file}.json backbone.gradient_checkpointing={checkpointing}"
