"""Config keys of the frozen backbone."""

import sys
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.core.bounds import MOST_LAYERS, check_folder
from pipeline.core.errors import UserError
from pipeline.core.settings import PathSetting, Settings
from pipeline.distributed.launcher import local_copy

if TYPE_CHECKING:
    import torch

PACKAGE_SCHEME = "package:"

Quantization = Literal["none", "int8", "int8_weight_only", "int4"]
Attention = Literal[
    "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"
]
Pooling = Literal["auto", "last", "first", "mean", "statistics"]


def _refuse_in_files(value: Any) -> bool:
    if value is None or value is False:  # what older versions wrote into every file
        return False
    raise ValueError(
        "a file may not have the code run that ships with a model: take the key out, and give --trust-remote-code on "
        "the command line (from Python: trust_remote_code=True) if you trust the model's authors"
    )


TrustRemoteCode = Annotated[bool, BeforeValidator(_refuse_in_files), Field(exclude=True)]
"""Neither read from a file nor written to one: only `model_copy` sets it, for the command line and the Python API."""


def _layers(value: Any) -> int | tuple[int, ...] | None:
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    numbers = given and all(type(one) is int and 1 <= one <= MOST_LAYERS for one in given)
    if value is not None and (not numbers or any(lower >= upper for lower, upper in pairwise(given))):
        raise ValueError(f"set null, a number from 1 to {MOST_LAYERS:,}, or a list of such numbers in ascending order")
    return given if isinstance(value, list) else value


class BackboneConfig(Settings):
    """Which pretrained model is used, and how it is held in memory."""

    name_or_path: PathSetting
    """Hub id, local folder, or package:NAME/FOLDER inside an installed Python package, with safetensors weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """float32 or bfloat16: the dtype of computation, and of the weights that are not quantized."""
    quantization: Quantization = "none"
    """How the linear layers' weights are stored: none, int8 (LLM.int8()), int8_weight_only, or int4 (in blocks)."""
    int8_threshold: float = Field(default=6.0, ge=0)
    """Activation columns with a magnitude above this are multiplied in the compute dtype (int8 only; 0: none). They are
    those of all texts that are read together, whose scores depend on one another by that."""
    attention: Attention = "auto"
    """The attention kernel, by transformers' name: sdpa, eager, flash_attention_2, flash_attention_3, flash_attention_4
    or flex_attention. auto: transformers' choice, as a rule sdpa."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    layers: Annotated[int | tuple[int, ...] | None, BeforeValidator(_layers)] = None
    """How many of the backbone's layers, from the first, read texts and labels; the others are never loaded. null: all.
    A list such as [1, 8, 16, 24] reads with 24, and a text's state joins (concatenates) those of the listed layers."""
    pooling: Pooling = "auto"
    """How the states of a text's tokens become one: the last token's (last), the first's (first), their mean (mean), or
    their mean and standard deviation side by side (statistics). auto: last for decoders, mean for encoders."""
    trust_remote_code: TrustRemoteCode = False
    """Run model code that ships with the checkpoint."""

    def trusted(self, trust_remote_code: bool) -> "BackboneConfig":
        """The same with this said of `trust_remote_code`."""
        return self.model_copy(update={"trust_remote_code": trust_remote_code})

    def moved(self, place: str | None) -> "BackboneConfig":
        """The same at another place, in whatever revision is there; None: where it was."""
        return self if place is None else self.model_copy(update={"name_or_path": place, "revision": None})

    @property
    def torch_dtype(self) -> "torch.dtype":
        """`dtype` as PyTorch has it."""
        import torch  # late: a config is read without it

        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    @property
    def depth(self) -> int | None:
        """How many layers are read with; None: all."""
        return self.layers[-1] if isinstance(self.layers, tuple) else self.layers

    @property
    def joined(self) -> tuple[int, ...]:
        """See `BackboneFacts.joined`."""
        return self.layers if isinstance(self.layers, tuple) and len(self.layers) > 1 else ()

    @property
    def pooled(self) -> int:
        """See `BackboneFacts.pooled`."""
        return 2 if self.pooling == "statistics" else 1

    @property
    def location(self) -> str:
        """What transformers is to load: a hub id or a folder.

        Raises UserError where a package is not installed or lacks the folder, and where a folder holds pipes or
        devices, which would be read without end.
        """
        try:
            place = self._place()
            if Path(place).is_dir():
                check_folder(Path(place))
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise UserError(f"backbone.name_or_path {self.name_or_path!r} cannot be read: {error}") from error
        return place

    def _place(self) -> str:
        if not self.name_or_path.startswith(PACKAGE_SCHEME):
            return local_copy(self.name_or_path)
        package, _, folder = self.name_or_path.removeprefix(PACKAGE_SCHEME).partition("/")
        installed = _installed(package).resolve()
        found = (installed / folder).resolve()
        if not found.is_relative_to(installed):
            raise UserError(f"backbone.name_or_path '{self.name_or_path}': the folder leads out of the package")
        if not found.is_dir():
            raise UserError(f"backbone.name_or_path '{self.name_or_path}': the package {package} has no such folder")
        return str(found)


def _installed(package: str) -> Path:
    """The folder of an installed package, found without importing anything. UserError where there is none.

    Only where packages are installed: what lies in the current folder, or beside the script, may be anybody's.
    """
    places = [
        place
        for place in sys.path
        if Path(place).name in ("site-packages", "dist-packages") and Path(place).resolve() != Path.cwd()
    ]
    spec = PathFinder.find_spec(package, places) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"backbone.name_or_path '{PACKAGE_SCHEME}{package}/...': the package {package} is not installed"
        )
    return Path(next(iter(spec.submodule_search_locations)))
