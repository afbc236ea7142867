"""A linear layer on the untouched backbone's pooled output: what the states know already."""

from typing import Literal

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.text_classifier import TextClassifierConfig


class LinearProbeConfig(TextClassifierConfig):
    """Nothing but a linear head."""

    name: Literal["linear_probe"] = "linear_probe"

    def build_injector(self, facts: BackboneFacts) -> None:
        return None

    def injector_parameters(self, facts: BackboneFacts) -> int:
        return 0
