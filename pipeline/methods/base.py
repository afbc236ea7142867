"""What every tuning method is: a producer of injections and a head that scores the backbone's answer.

A method is trained inside a ZeRO-3 engine, which shows a module's parameters only while that module's `forward`
runs: so every parameter is read in the `forward` of the module that owns it, never from outside.
"""

from abc import abstractmethod

from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.methods.heads import HeadName
from pipeline.settings import Settings


class MethodConfig(Settings):
    """Keys that all tuning methods share. Each method's own class adds `name` and what steers it."""

    head: HeadName = "label_aware"
    """linear: the paper's 2H parameters; label_aware: adds a scaled cosine between text and label (H^2 + 1 more)."""

    @abstractmethod
    def build(self, facts: BackboneFacts, prompt_tokens: int) -> nn.Module:
        """The trainable producer: (label states [K, P, H], mask [K, P]) -> Injection for K rows."""

    @abstractmethod
    def producer_parameters(self, facts: BackboneFacts, prompt_tokens: int) -> int:
        """Trainable elements of the producer, by formula."""


class TuningMethod(nn.Module):
    """The whole trainable part: `producer` turns label states into an injection, `head` turns outputs into scores."""

    def __init__(self, producer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.producer = producer
        self.head = head

    def inject(self, states: Tensor, mask: Tensor) -> Injection:
        """What enters the backbone for each label: states [K, P, H], mask [K, P] -> Injection of K rows."""
        injection = self.producer(states, mask)
        assert isinstance(injection, Injection)
        return injection

    def score(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """How true each row's label is: pooled [B, H], its label's states [B, P, H] and mask [B, P] -> [B] float32."""
        scores = self.head(pooled, states, mask)
        assert isinstance(scores, Tensor)
        return scores.float()
