"""Config keys of the DeepSpeed engine and of logging."""

from typing import Literal

from pydantic import Field

from pipeline.core.bounds import LONGEST_WAIT, MOST_STATES_GIB, MOST_TRACED_STEPS
from pipeline.core.settings import Distinct, PathSetting, Settings


class EngineConfig(Settings):
    """How the model is spread over processes."""

    deepspeed: PathSetting = "ds_configs/zero3_cpu.json"
    """DeepSpeed JSON file; values set to "auto" are filled from the run config."""
    deterministic: bool = True
    """On a GPU, use only deterministic kernels in backward, so that a repeated or resumed run gives the same adapter
    bit for bit. false: faster kernels (cuDNN's attention) are used too, and adapters are equal up to rounding."""
    states_gib: float = Field(default=64.0, gt=0, le=MOST_STATES_GIB)
    """Most GiB that encode-texts writes. A text takes the width of its state times 2 or 4 bytes; with
    train.keep_token_states, each of its tokens takes as much or more."""
    threads: int | None = Field(default=None, ge=1, le=65_536)
    """CPU threads per process; null leaves PyTorch's choice."""
    heartbeat_seconds: int = Field(default=120, ge=2, le=LONGEST_WAIT)
    """A rank that gives no sign of life for this long (killed, stopped, host gone) ends the run on all others."""
    timeout_seconds: int = Field(default=1800, ge=10, le=LONGEST_WAIT)
    """A collective operation that waits longer than this ends the run with an error."""


class LoggingConfig(Settings):
    """Where training metrics go."""

    trackers: Distinct[Literal["jsonl", "tensorboard", "wandb", "mlflow"]] = ["jsonl", "tensorboard"]
    """Any of jsonl, tensorboard, wandb, mlflow. jsonl (logs/metrics.jsonl) is always written; the last two need
    `pip install .[trackers]`."""
    project: str = Field(default="l-tuning", min_length=1)
    """Project of wandb, experiment of mlflow."""
    name: str | None = Field(default=None, min_length=1)
    """The run's name there; null: that of the run directory. A resumed run goes on as the same run."""
    trace_steps: int | None = Field(default=None, ge=1, le=MOST_TRACED_STEPS)
    """Number of training steps to trace on rank 0, after the first two; written to logs/trace.json (Perfetto)."""
