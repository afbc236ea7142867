"""Fine-tuning of all the backbone's weights: the ceiling, where memory allows it."""

from typing import ClassVar, Literal

from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig


class FullConfig(TextClassifierConfig):
    """Nothing is frozen. Dropout inside the backbone stays off, as for every method."""

    is_baseline: ClassVar[bool] = True
    trains_backbone: ClassVar[bool] = True

    name: Literal["full"] = "full"

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "FullTuning":
        return FullTuning(None, self.build_head(facts, label_count))

    def build_injector(self, facts: BackboneFacts) -> None:
        return None

    def injector_parameters(self, facts: BackboneFacts) -> int:
        return 0


class FullTuning(TextClassifier):
    """A linear head on a backbone that learns with it."""

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(True)
