"""Config keys of the frozen backbone."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.launcher import local_copy
from pipeline.settings import Settings

PACKAGE_SCHEME = "package:"

Quantization = Literal["none", "int8", "int8_weight_only"]
Pooling = Literal["auto", "last", "first", "mean"]


class BackboneConfig(Settings):
    """Which pretrained model is used, and how it is held in memory."""

    name_or_path: str
    """Hub id, local folder, or package:NAME/FOLDER inside an installed Python package, with safetensors weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype; also the storage dtype of whatever is not quantised."""
    quantization: Quantization = "none"
    """How the linear layers' weights are stored: none, int8 (LLM.int8()) or int8_weight_only."""
    int8_threshold: float = Field(default=6.0, ge=0)
    """Activation columns with a magnitude above this are multiplied in the compute dtype (int8 only; 0: none)."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    pooling: Pooling = "auto"
    """Which output token the head reads: last (decoders), first or mean (encoders); auto picks last or mean."""
    trust_remote_code: bool = False
    """Run model code that ships with the checkpoint. Only for sources you trust."""

    @property
    def location(self) -> str:
        """What transformers is to load: a hub id or a folder. Raises UserError where a package is not installed."""
        if not self.name_or_path.startswith(PACKAGE_SCHEME):
            return local_copy(self.name_or_path)
        package, _, folder = self.name_or_path.removeprefix(PACKAGE_SCHEME).partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"backbone.name_or_path '{self.name_or_path}': the package {package} is not installed")
        return str(Path(spec.submodule_search_locations[0]) / folder)
