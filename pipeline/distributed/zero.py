"""The fence around DeepSpeed: all that is asked of it, by public and by private name, is asked here.

Tested with DeepSpeed 0.19.8. `NAMES` lists what must exist in its modules, `ON_PARAMETERS` and `ON_OPTIMIZERS` what it
hangs on the objects it is given. tests/distributed/test_zero.py looks each up: a version that lacks one fails there, by
name.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import getclosurevars
from typing import Any, cast

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

# DeepSpeed takes seconds to import: every function does so itself, when it is called.

NAMES = (
    "deepspeed.utils.logger",
    "deepspeed.ops.__compatible_ops__",
    "deepspeed.comm.destroy_process_group",
    "deepspeed.comm.comm.cdb",
    "deepspeed.utils.groups._WORLD_GROUP",
    "deepspeed.utils.groups._get_zero_param_intra_parallel_group",
    "deepspeed.runtime.zero.config.DeepSpeedZeroConfig",
    "deepspeed.zero.Init._convert_to_deepspeed_param",
    "deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK",
    "deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator."
    "_PartitionedParameterCoordinator__params_to_release",
    "deepspeed.zero.GatheredParameters",
    "deepspeed.utils.safe_get_full_fp32_param",
    "deepspeed.utils.safe_set_full_fp32_param",
    "deepspeed.utils.safe_set_local_fp32_param",
    "deepspeed.utils.safe_get_full_optimizer_state",
    "deepspeed.utils.safe_set_full_optimizer_state",
    "deepspeed.utils.safe_set_local_optimizer_state",
)

ON_PARAMETERS = {
    3: ("ds_id", "ds_numel", "ds_shape", "ds_tensor", "ds_process_group"),
    2: ("_hp_mapping",),
    1: ("_hp_mapping",),
}
"""ZeRO stage -> attributes of the parameters of an engine."""
ON_OPTIMIZERS = {2: ("_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state")}
"""ZeRO stage -> attributes of an engine's optimizer, beside one of `FLAT_MASTERS`."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, by the names that torch and DeepSpeed give it."""
# Where DeepSpeed's optimizers keep the flat fp32 tensors that the inner AdamW steps: ZeRO 3, ZeRO 1 and 2, bf16 ZeRO 1.
FLAT_MASTERS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")


def keep_quiet() -> None:
    """Warnings alone are logged, and no operation is compiled at start-up."""
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Else DeepSpeed compiles a C++ all-reduce at the first start on a CPU: 40 seconds, and a compiler, for nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def end_process_group() -> None:
    """Ends the process group, and makes DeepSpeed forget it: it keeps both for the life of the process."""
    import deepspeed

    deepspeed.comm.destroy_process_group()
    deepspeed.utils.groups._WORLD_GROUP = None  # before 0.19.8
    deepspeed.comm.comm.cdb = None


def zero_faults(zero_optimization: dict[str, Any]) -> list[str]:
    """What DeepSpeed refuses in this section of its config."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero_optimization)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return []


class Shares:
    """How ZeRO-3 cuts the parameters made on this rank. The process group must exist before (DeepSpeed #8084)."""

    def __init__(self, zero_config: dict[str, Any]) -> None:
        """`zero_config`: a complete DeepSpeed dict of stage 3, whose zero_hpz_partition_size divides the ranks."""
        import deepspeed
        from deepspeed.utils import groups

        # DeepSpeed refuses to make the group of ZeRO++ hpZ a second time in a process.
        hpz = zero_config["zero_optimization"].get("zero_hpz_partition_size", 1) > 1
        made = groups._get_zero_param_intra_parallel_group() if hpz else None
        self._init = deepspeed.zero.Init(config_dict_or_path=zero_config, zero_param_parallel_group=made)

    @property
    def world_size(self) -> int:
        """Number of ranks a parameter is cut for."""
        return int(self._init.dp_world_size)

    def kept_ranges(self, size: int) -> list[tuple[int, int]]:
        """Element ranges of a flat parameter of `size` elements that DeepSpeed keeps on this rank."""
        init, world = self._init, self.world_size
        shares = [(init.rank, world)]
        if init.zero_param_process_group is not None:  # ZeRO++ hpZ: the node keeps a second, coarser partition
            shares.append((init.rank_in_group, init.num_ranks_in_param_group))
        aligned = math.ceil(size / world) * world
        return [(min(size, rank * aligned // n), min(size, (rank + 1) * aligned // n)) for rank, n in shares]

    def partition(self, parameter: nn.Parameter) -> None:
        """Keeps this rank's ranges of a whole parameter, and frees the rest."""
        # Not zero.Init(module=...): it broadcasts every parameter from rank 0, as if rank 0 had all of it.
        self._init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]  # the line above added it

    def partitioned(self, whole: Tensor, share: Tensor) -> nn.Parameter:
        """A frozen parameter of the shape of `whole`, whose share on this rank lies in the memory of `share`."""
        parameter: Any = nn.Parameter(whole, requires_grad=False)
        self.partition(parameter)
        parameter.ds_tensor.data = share
        return cast(nn.Parameter, parameter)


def keeps_shares(zero_config: dict[str, Any]) -> bool:
    """Is what a rank keeps of each parameter one plain tensor in memory?

    Not with a node's share beside it (hpZ), on a disk, or written in fewer bits.
    """
    section = zero_config["zero_optimization"]
    on_disk = (section.get("offload_param") or {}).get("device") == "nvme"
    several = section.get("zero_hpz_partition_size", 1) > 1
    return not (several or on_disk or section.get("zero_quantized_nontrainable_weights", False))


def own_share(parameter: nn.Parameter) -> Tensor:
    """What this rank keeps of a parameter: its memory, which `give_back` takes from the parameter alone."""
    kept: Tensor = getattr(parameter, "ds_tensor", parameter).data
    return kept


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, which may be partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def no_leaf_modules() -> Iterator[None]:
    """Of some mixtures of experts DeepSpeed 0.19.8 gathers a whole block, and frees what LoRA trains in it too early.

    None need it here: an experts module's parameters are read whole, whatever the texts hit. Its default is emptied,
    since for a key of the config it would warn in every run.
    """
    from deepspeed.runtime.zero.leaf_module_config import DEFAULT_LEAF_MODULE_CLASSES

    given = DEFAULT_LEAF_MODULE_CLASSES[:]
    DEFAULT_LEAF_MODULE_CLASSES.clear()
    try:
        yield
    finally:
        DEFAULT_LEAF_MODULE_CLASSES.extend(given)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Does ZeRO-3 hold this parameter in shares?"""
    return hasattr(parameter, "ds_id")


def element_count(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, which may be partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def whole(parameter: nn.Parameter, *, written: bool = False) -> AbstractContextManager:
    """Inside, a parameter is whole on every rank, partitioned or not. `written`: rank 0's values are kept."""
    import deepspeed

    writer = 0 if written else None
    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer, enabled=is_partitioned(parameter))


def give_back(module: nn.Module) -> None:
    """Frees a module and the memory of its parameters, which DeepSpeed 0.19.8 keeps beyond its engine's end."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    own = set(module.modules())
    FWD_MODULE_STACK[:] = [kept for kept in FWD_MODULE_STACK if own.isdisjoint(kept.modules())]
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    getclosurevars(cached).nonlocals["func"].cache_clear()  # a decorator hides the cache
    for parameter in module.parameters():
        for tensor in (parameter, getattr(parameter, "ds_tensor", None)):
            if tensor is not None:
                tensor.data = tensor.data.new_empty(0)


def flat_masters(optimizer: Any) -> list[Tensor]:
    """The fp32 tensors that the AdamW inside DeepSpeed's optimizer steps."""
    for name in FLAT_MASTERS:
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def link_moments(optimizer: Any) -> None:
    """Lets ZeRO 1 and 2 find the moments of all parameters (ZeRO 3 looks them up, others keep them by parameter).

    DeepSpeed does so by itself, but in its first step, when only the first of several groups has its moments.
    """
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def master(parameter: nn.Parameter) -> Tensor:
    """The whole fp32 value of a parameter. Every rank must call this."""
    from deepspeed.utils import safe_get_full_fp32_param

    full = safe_get_full_fp32_param(parameter)
    return parameter.detach() if full is None else full


def moment(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    """A whole moment of a parameter, after `link_moments`. Every rank must call this."""
    from deepspeed.utils import safe_get_full_optimizer_state

    full = safe_get_full_optimizer_state(parameter, key)
    return engine.basic_optimizer.state[parameter][key] if full is None else full


def set_master(parameter: nn.Parameter, value: Tensor) -> None:
    """Sets the fp32 value from a whole one. Every rank must call this."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if is_partitioned(parameter):
        # DeepSpeed's own "full" setters of ZeRO 3 fail where the ranks' shares are padded.
        safe_set_local_fp32_param(parameter, _own_share(parameter, value))
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_fp32_param(parameter, value)
    else:
        parameter.data.copy_(value)


def set_moment(engine: Any, parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """Sets a moment from a whole one, after `link_moments`. Every rank must call this."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if is_partitioned(parameter):
        safe_set_local_optimizer_state(parameter, _own_share(parameter, value), key)
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_optimizer_state(parameter, value, key)
    else:
        engine.basic_optimizer.state[parameter][key].copy_(value)


def _own_share(parameter: Any, value: Tensor) -> Tensor:
    """The part of a whole tensor that this rank keeps under ZeRO 3, padded with zeros as ZeRO pads it."""
    size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
    padded = value.new_zeros(size * dist.get_world_size(group))
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, size * dist.get_rank(group), size)
