"""LoRA: trained low-rank matrices beside the backbone's frozen ones, through PEFT (Hu et al., arXiv 2106.09685)."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.bounds import WIDEST
from pipeline.core.errors import UserError
from pipeline.core.settings import distinct
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig


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
        """Puts PEFT's layers around the linear ones. UserError where the model has none of the targets."""
        import peft  # takes seconds, and only this method needs it
        from peft.tuners.lora.layer import Linear

        config = peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            target_modules=_linear_names(model) if self.config.targets == "all" else self.config.targets,
            lora_dropout=0.0,
            use_rslora=self.config.rank_stabilized,
        )
        config._register_custom_module({QuantizedLinear: Linear})
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            linear = ", ".join(_linear_names(model))
            raise UserError(f"method.targets: {error}; linear layers here: {linear}") from error


def _linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers, each once."""
    from pipeline.backbone.quantization import is_linear  # late: it imports models, which no config needs

    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
