"""The usual classifier on a frozen backbone: one injection for all texts, and a linear layer over the labels."""

from typing import ClassVar

from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.methods.base import MethodConfig, Reader, Readings, TuningMethod
from pipeline.methods.heads import ClassHead, FittedHead, HeadName, beside_logits
from pipeline.methods.logistic import fitted_head


class TextClassifierConfig(MethodConfig):
    """Methods that know a label by its index alone, or nearly so."""

    head: HeadName = "linear"
    """linear: K*(M + 1) parameters; label_aware: adds a scaled cosine between text and label (H^2 + 1 more); fitted:
    the probe of the texts that are read alone, which is not trained."""

    @property
    def wants_states(self) -> bool:
        return self.head == "fitted"

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "TextClassifier":
        return TextClassifier(self.build_injector(facts), self.build_head(facts, label_count))

    def build_head(self, facts: BackboneFacts, label_count: int) -> ClassHead | FittedHead:
        """The layer behind the backbone, for K labels."""
        if self.head == "fitted":
            return FittedHead(facts.pooled_width, label_count)
        return ClassHead(self.head, facts, label_count)

    def fitted_state(self, readings: Readings) -> dict[str, Tensor]:
        return fitted_head(readings)

    def trainable_count(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
        if self.head == "fitted":
            return self.injector_parameters(facts)
        head = label_count * (facts.pooled_width + 1) + beside_logits(self.head, facts.hidden_size)
        return self.injector_parameters(facts) + head

    def build_injector(self, facts: BackboneFacts) -> nn.Module | None:
        """The trainable part before the head: () -> Injection of one row. None: nothing is injected."""
        return None

    def injector_parameters(self, facts: BackboneFacts) -> int:
        """Trainable elements of the injector, by formula."""
        return 0


class TextClassifier(TuningMethod):
    """`injector` makes what every text is read with, `head` turns the backbone's output into K scores."""

    judges_hypotheses: ClassVar[bool] = True

    def __init__(self, injector: nn.Module | None, head: ClassHead | FittedHead) -> None:
        super().__init__()
        self.injector = injector
        self.head = head

    @property
    def depends_on_hypotheses(self) -> bool:
        return self.head.reads_labels

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.head(read(self.inject(len(candidates)), 1), states, mask, self.trained)
        return scores.gather(1, candidates).float()

    def inject(self, rows: int) -> Injection | None:
        """The same injection for every text, in `rows` rows."""
        if self.injector is None:
            return None
        injection = self.injector()
        assert isinstance(injection, Injection)
        return injection.expand(rows)
