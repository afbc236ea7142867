"""LoRA: trained low-rank matrices beside the backbone's frozen ones, through PEFT (Hu et al., arXiv 2106.09685)."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.bounds import WIDEST
from pipeline.core.errors import UserError
from pipeline.core.imports import without_compiler
from pipeline.core.settings import distinct
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig

_HELD = "model"


class LoRAConfig(TextClassifierConfig):
    """Low-rank adaptation."""

    is_baseline: ClassVar[bool] = True

    name: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=WIDEST)
    """Rank of each pair of matrices."""
    alpha: int = Field(default=16, ge=1, le=WIDEST)
    """Their product is scaled by alpha / rank."""
    targets: list[str] | Literal["all"] | None = Field(default=None, min_length=1)
    """Names of the linear layers to adapt; all: every one; null: PEFT's choice for the family, mostly queries and
    values."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank), so that a higher rank learns as fast (rsLoRA, arXiv 2312.03732)."""

    @field_validator("targets")
    @classmethod
    def _names_differ(cls, targets: list[str] | str | None) -> list[str] | str | None:
        return distinct(targets) if isinstance(targets, list) else targets

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "LoRA":
        return LoRA(self, self.build_head(facts, label_count))


class LoRA(TextClassifier):
    """A linear head; the low-rank matrices live in the backbone."""

    def __init__(self, config: LoRAConfig, head: ClassHead | FittedHead) -> None:
        super().__init__(None, head)
        self.config = config

    def attach(self, model: nn.Module) -> None:
        """Puts PEFT's layers around the linear ones. UserError where the model has not all of the targets."""
        with without_compiler():  # for bitsandbytes, which comes along
            import peft  # takes half a second, and only this method needs it
            from peft.tuners.lora.layer import Linear

        config = peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            target_modules=[f"{_HELD}.{name}" for name in _targets(model, self.config.targets)],
            lora_dropout=0.0,
            use_rslora=self.config.rank_stabilized,
        )
        config._register_custom_module({QuantizedLinear: Linear})
        # Held by a module without a config: of a mixture of experts that PEFT knows, it would take these names for the
        # experts' matrices, and read them outside of their module, where they may be codes, or another rank's.
        peft.inject_adapter_in_model(config, nn.ModuleDict({_HELD: model}))


def _targets(model: Any, wanted: list[str] | str | None) -> list[str]:
    """Whole names of the layers to adapt. UserError for a name in `wanted` that none of them has."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN

    from pipeline.backbone.quantization import linear_layers  # late: it imports models, which no config needs

    linear = linear_layers(model)
    if wanted == "all":
        return linear
    # What a text's tokens are looked up in is no product, but PEFT has a layer for it too.
    embeddings = [name for name, module in model.named_modules() if module is model.get_input_embeddings()]
    names = CHOSEN.get(model.config.model_type, []) if wanted is None else wanted
    found = {each: [name for name in linear + embeddings if f".{name}".endswith(f".{each}")] for each in names}
    strays = [each for each, layers in found.items() if not layers]
    if not any(found.values()) or (wanted is not None and strays):
        problem = (
            f"no linear layer that can be adapted is called {strays[0]!r}"
            if strays
            else f"PEFT has no choice for {model.config.model_type}"
        )
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise UserError(f"method.targets: {problem}: set all, or some of the linear layers {known}")
    return sorted({name for layers in found.values() for name in layers})
