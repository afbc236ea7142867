"""The usual classifier on a frozen backbone: one injection for all texts, and a linear layer over the labels."""

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.methods.base import MethodConfig, Reader, TuningMethod


class TextClassifierConfig(MethodConfig):
    """Methods that know a label by its index alone."""

    def build(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> "TextClassifier":
        return TextClassifier(self.build_injector(facts), facts.hidden_size, label_count)

    def trainable_count(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> int:
        return self.injector_parameters(facts) + label_count * (facts.hidden_size + 1)

    @abstractmethod
    def build_injector(self, facts: BackboneFacts) -> nn.Module | None:
        """The trainable part before the head: () -> Injection of one row."""

    @abstractmethod
    def injector_parameters(self, facts: BackboneFacts) -> int:
        """Trainable elements of the injector, by formula."""


class ScoreHead(nn.Linear):
    """A linear layer that multiplies in float32: bfloat16 scores would often be equal."""

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, H] -> [B, K] float32."""
        return functional.linear(pooled.float(), self.weight.float(), self.bias.float())


class TextClassifier(TuningMethod):
    """`injector` makes what every text is read with, `head` turns the backbone's output into K scores."""

    def __init__(self, injector: nn.Module | None, hidden_size: int, label_count: int) -> None:
        super().__init__()
        self.injector = injector
        self.head = ScoreHead(hidden_size, label_count)

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.head(read(self.inject(len(candidates)), 1)).gather(1, candidates)

    def inject(self, rows: int) -> Injection | None:
        """The same injection for every text, in `rows` rows."""
        if self.injector is None:
            return None
        injection = self.injector()
        assert isinstance(injection, Injection)
        return injection.expand(rows)
