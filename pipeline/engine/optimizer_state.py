"""The trained state: fp32 parameters and Adam moments, gathered whole from ZeRO's partitions and put back into them.

Whole tensors fit every number of ranks, which DeepSpeed's own partitioned files do not (deepspeedai/DeepSpeed #2921).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
# Where DeepSpeed's optimizers keep the flat fp32 tensors that the inner AdamW steps: ZeRO 3, ZeRO 1 and 2, bf16 ZeRO 1.
_FLAT_MASTERS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")


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
    state = {}
    for name, parameter in parameters.items():
        full = safe_get_full_fp32_param(parameter)
        state[name] = (parameter.detach() if full is None else full).float().cpu().clone()
    return state


def gather_state(engine: Any, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    """Everything the optimizer knows, after at least one step. Every rank must call this."""
    _link_moments(engine.optimizer)
    moments = {
        key: {name: _moment(engine, parameter, key).float().cpu().clone() for name, parameter in parameters.items()}
        for key in MOMENTS
    }
    step = int(next(iter(engine.basic_optimizer.state.values()))["step"])
    return OptimizerState(gather_parameters(parameters), moments, step)


def restore_state(engine: Any, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
    """Sets masters, moments and AdamW's step count in a new engine, whatever its ZeRO stage and number of ranks.

    The engine must have been built around the same parameters: its copies in the compute dtype are not touched.
    """
    inner = engine.basic_optimizer
    for flat in _flat_masters(engine.optimizer):
        # AdamW would make its state at the first step; it has to be there before it can be filled.
        inner.state[flat] = {"step": torch.tensor(float(state.step))} | {key: torch.zeros_like(flat) for key in MOMENTS}
    _link_moments(engine.optimizer)
    for name, parameter in parameters.items():
        _set(engine, parameter, state.parameters[name], None)
        for key in MOMENTS:
            _set(engine, parameter, state.moments[key][name], key)


def _flat_masters(optimizer: Any) -> list[Tensor]:
    for name in _FLAT_MASTERS:
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _link_moments(optimizer: Any) -> None:
    """Lets ZeRO 1 and 2 find the moments of all parameters (ZeRO 3 looks them up, others keep them by parameter).

    DeepSpeed does so by itself, but in its first step, when only the first of several groups has its moments.
    """
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _moment(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    full = safe_get_full_optimizer_state(parameter, key)
    return engine.basic_optimizer.state[parameter][key] if full is None else full


def _set(engine: Any, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """`key` names a moment; None is the master itself."""
    value = value.to(engine.device)
    if hasattr(parameter, "ds_id"):
        # DeepSpeed's own "full" setters of ZeRO 3 fail where the ranks' shares are padded.
        share = _own_share(parameter, value)
        if key is None:
            safe_set_local_fp32_param(parameter, share)
        else:
            safe_set_local_optimizer_state(parameter, share, key)
    elif hasattr(parameter, "_hp_mapping"):
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
    elif key is None:
        parameter.data.copy_(value)
    else:
        engine.basic_optimizer.state[parameter][key].copy_(value)


def _own_share(parameter: Any, value: Tensor) -> Tensor:
    """The part of a whole tensor that this rank keeps under ZeRO 3, padded with zeros as ZeRO pads it."""
    size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
    padded = value.new_zeros(size * dist.get_world_size(group))
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, size * dist.get_rank(group), size)
