"""Memory, time and communication of a run on any number of GPUs, from its config alone."""

from pipeline.backbone.model_config import load_model_config
from pipeline.config import RunConfig
from pipeline.core.output import say
from pipeline.estimate.case import build_case
from pipeline.estimate.costs import Plan, plans
from pipeline.estimate.table import report


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
    say(report(config, case, gpu))
    return plans(case)
