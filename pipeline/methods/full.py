"""Fine-tuning of all the backbone's weights: the ceiling, where memory allows it."""

from typing import Literal

from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.linear import QuantizedLinear
from pipeline.errors import UserError
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig


class FullConfig(TextClassifierConfig):
    """Nothing is frozen. Dropout inside the backbone stays off, as for every method."""

    name: Literal["full"] = "full"

    def build(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> "FullTuning":
        return FullTuning(None, self.build_head(facts, label_count))

    def build_injector(self, facts: BackboneFacts) -> None:
        return None

    def injector_parameters(self, facts: BackboneFacts) -> int:
        return 0


class FullTuning(TextClassifier):
    """A linear head on a backbone that learns with it."""

    def attach(self, model: nn.Module) -> None:
        """UserError for 8-bit weights, which take no gradient."""
        if any(isinstance(module, QuantizedLinear) for module in model.modules()):
            raise UserError("method full trains the backbone's own weights: set backbone.quantization=none")
        model.requires_grad_(True)
