"""Fine-tuning of all the backbone's weights: the ceiling, where memory allows it. Or of a share of them.

Half fine-tuning (HFT: Hui et al., arXiv 2404.18466) leaves a random half of each layer's matrices and norms frozen.
"""

from collections.abc import Iterator
from random import Random
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.trunk import layers_of
from pipeline.core.errors import UserError
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig

Part = nn.Module
"""A module of a layer with weights of its own: a matrix, with its bias, or a norm."""


class FullConfig(TextClassifierConfig):
    """Nothing is frozen, or a drawn part. Dropout inside the backbone stays off, as for every method."""

    is_baseline: ClassVar[bool] = True
    trains_backbone: ClassVar[bool] = True

    name: Literal["full"] = "full"
    share: float = Field(default=1.0, gt=0, le=1)
    """Of the layers' attention matrices, other matrices and norms, each, this share is drawn to be trained; the rest is
    frozen. What is outside of the layers (embeddings, the last norm) is trained. 0.5: half fine-tuning."""
    draw: int = Field(default=0, ge=0)
    """Seed of the draw of `share`."""

    @model_validator(mode="after")
    def _all_is_no_draw(self) -> "FullConfig":
        if self.draw and self.share == 1:
            raise ValueError("method.draw has a meaning only with method.share below 1")
        return self

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "FullTuning":
        return FullTuning(self, self.build_head(facts, label_count))


class FullTuning(TextClassifier):
    """A linear head on a backbone that learns with it."""

    def __init__(self, config: FullConfig, head: ClassHead | FittedHead) -> None:
        super().__init__(None, head)
        self.config = config

    def attach(self, model: nn.Module) -> None:
        """Makes the weights trainable. UserError where a share is asked of layers that cannot be told apart."""
        model.requires_grad_(True)
        if self.config.share == 1:
            return
        found = layers_of(model)
        if found is None:
            reason = f"the layers of {type(model).__name__} do not stand in one list"
            raise UserError(f"method.share={self.config.share}: {reason}: set method.share=1")
        for part in frozen_parts(found.layers, self.config.share, Random(self.config.draw)):
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(False)


def frozen_parts(layers: nn.ModuleList, share: float, generator: Random) -> Iterator[Part]:
    """What is left once round(share * count) parts of each kind are taken, as evenly over the layers as that goes.

    Draws nothing but `random()`, which is the same in every Python, and looks at no weight, which ZeRO-3 would hide: a
    run that is resumed, and an adapter that is loaded, find the same.
    """
    kinds = [_parts_by_kind(layer) for layer in layers]
    for kind in ("attention", "other", "norm"):
        counted, taken = 0, 0
        for parts in sorted((of_layer[kind] for of_layer in kinds), key=lambda _: generator.random()):
            counted += len(parts)
            count = round(share * counted) - taken
            taken += count
            yield from sorted(parts, key=lambda _: generator.random())[count:]


def _parts_by_kind(layer: nn.Module) -> dict[str, list[Part]]:
    """A layer's parts; matrices of attention are those in a module that is called so."""
    found: dict[str, list[Part]] = {"attention": [], "other": [], "norm": []}
    for name, module in layer.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        is_norm = "norm" in type(module).__name__.lower()
        found["norm" if is_norm else "attention" if "att" in name else "other"].append(module)
    return found
