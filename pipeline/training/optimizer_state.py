"""The trained state: fp32 parameters and Adam moments, gathered whole from ZeRO's partitions and put back into them.

Whole tensors fit every number of ranks, which DeepSpeed's own partitioned files do not (deepspeedai/DeepSpeed #2921).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.distributed.zero import MOMENTS, flat_masters, link_moments, master, moment, set_master, set_moment


@dataclass(frozen=True)
class OptimizerState:
    """The L-Tuning parameters (fp32 masters) and AdamW's state of them, by parameter name, whole, on the CPU."""

    parameters: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    """moment (exp_avg, exp_avg_sq) -> parameter name -> tensor"""
    step: int
    """AdamW's own count of steps."""


def gather_parameters(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """fp32 copies on the CPU, whole. Every rank must call this."""
    return {name: master(parameter).float().cpu().clone() for name, parameter in parameters.items()}


def gather_state(engine: Any, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    """Everything the optimizer knows, after at least one step. Every rank must call this."""
    link_moments(engine.optimizer)
    moments = {
        key: {name: moment(engine, parameter, key).float().cpu().clone() for name, parameter in parameters.items()}
        for key in MOMENTS
    }
    step = int(next(iter(engine.basic_optimizer.state.values()))["step"])
    return OptimizerState(gather_parameters(parameters), moments, step)


def restore_state(engine: Any, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
    """Sets masters, moments and AdamW's step count in a new engine, whatever its ZeRO stage and number of ranks.

    The engine must have been built around the same parameters: its copies in the compute dtype are not touched.
    """
    inner = engine.basic_optimizer
    for flat in flat_masters(engine.optimizer):
        # AdamW would make its state at the first step; it has to be there before it can be filled.
        inner.state[flat] = {"step": torch.tensor(float(state.step))} | {key: torch.zeros_like(flat) for key in MOMENTS}
    link_moments(engine.optimizer)
    for name, parameter in parameters.items():
        set_master(parameter, state.parameters[name].to(engine.device))
        for key in MOMENTS:
            set_moment(engine, parameter, state.moments[key][name].to(engine.device), key)
