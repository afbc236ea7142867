"""Tuning methods by name. A new method is one file and one entry here."""

from typing import Annotated

from pydantic import Field

from pipeline.methods.base import MethodConfig, TuningMethod
from pipeline.methods.full import FullConfig
from pipeline.methods.linear_probe import LinearProbeConfig
from pipeline.methods.lora import LoRAConfig
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.methods.lt_prompt import LTPromptConfig
from pipeline.methods.majority import MajorityConfig
from pipeline.methods.p_tuning import PTuningConfig
from pipeline.methods.prefix import PrefixConfig
from pipeline.methods.prompt import PromptConfig
from pipeline.methods.zero_shot import ZeroShotConfig

AnyMethodConfig = Annotated[
    LTPrefixConfig
    | LTPromptConfig
    | PrefixConfig
    | PromptConfig
    | PTuningConfig
    | LoRAConfig
    | FullConfig
    | LinearProbeConfig
    | ZeroShotConfig
    | MajorityConfig,
    Field(discriminator="name"),
]
METHOD_NAMES = (
    "lt_prefix",
    "lt_prompt",
    "prefix",
    "prompt",
    "p_tuning",
    "lora",
    "full",
    "linear_probe",
    "zero_shot",
    "majority",
)

__all__ = ["METHOD_NAMES", "AnyMethodConfig", "MethodConfig", "TuningMethod"]
