"""Memory, time and communication of a run on any number of GPUs, from its config alone."""

from pipeline.backbone.model_config import load_model_config
from pipeline.config import RunConfig
from pipeline.core.output import say
from pipeline.estimate.case import Sections, build_case, gpu_here
from pipeline.estimate.costs import Plan, plans
from pipeline.estimate.table import report


def estimate(
    config: RunConfig,
    world_size: int = 1,
    gpu: str | None = None,
    bandwidth: float | None = None,
    hypothesis_tokens: int | None = None,
) -> list[Plan]:
    """Prints what each rank needs, sharded and replicated, with and without checkpointing, and which to take.

    `gpu`: the one of this machine, where it is None; on a machine without one nothing is said of time. `bandwidth`:
    interconnect in GB/s per GPU; `hypothesis_tokens`: P, the longest hypothesis. Only config.json is read.
    Raises UserError for an unknown GPU or backbone.
    """
    gpu = gpu or gpu_here()
    sections = Sections(config.backbone, config.data, config.labels, config.method, config.train, config.engine)
    case = build_case(sections, load_model_config(config.backbone), world_size, gpu, bandwidth, hypothesis_tokens)
    say(report(sections, case, gpu))
    return plans(case)
