"""Config keys that lt_prefix and lt_prompt share, and the module that they make."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts, Form
from pipeline.core.bounds import MOST_TOKENS
from pipeline.methods.base import MethodConfig, Readings
from pipeline.methods.heads import FittedHead, FittedJudge, HeadName, build_head, head_parameters
from pipeline.methods.label_tuning import (
    FittedLabelTuning,
    JudgedLabelTuning,
    LabelTuning,
    LabelTuningBesideProbe,
)
from pipeline.methods.logistic import fitted_head


class LabelTuningConfig(MethodConfig):
    """Keys that the label-tuning methods share."""

    if TYPE_CHECKING:

        @property
        def init_std(self) -> float | None:
            """Standard deviation of the initial map: each class has a default of its own."""

    came_later: ClassVar[Mapping[str, str]] = {"start": "random"}
    open_labels: ClassVar[bool] = True

    head: HeadName = "fitted"
    """fitted: the probe, fitted to texts read without a label before the first step; linear: the paper's head, 2H
    parameters; label_aware: the same plus a scaled cosine between text and label (H^2 + 1 more)."""
    start: Literal["hypothesis", "random"] = "hypothesis"
    """What a label injects before the first step. hypothesis: what the backbone computed for its hypothesis, so that a
    text is read as if it followed the hypothesis; training adds to that. random: the output of a random map."""
    judge: Literal["fitted", "label_aware", "probe"] = "probe"
    """With head=fitted, what scores a text that is read with a label. fitted: a judge, one direction for all labels,
    fitted before the first step to training texts read with labels (the default with position=after, where it does
    best); label_aware: a head of that kind, which the steps train by itself; probe: the probe, as for the text alone.
    """
    first_layer: int = Field(default=0, ge=0)
    """The lowest layer of the backbone that reads the injection. The layers below run once per text, not once per
    label, and without a gradient."""
    shortlist: int | None = Field(default=4, ge=1, le=MOST_TOKENS)
    """If training had more labels than this, a text is read alone first, and then with only this many labels, those
    that the head (fitted or label_aware) scores best. null: read it with every label. Where labels have several
    hypotheses, it counts hypotheses."""

    @model_validator(mode="after")
    def _init_std_needs_a_random_start(self) -> Self:
        field = type(self).model_fields.get("init_std")
        if field is not None and self.start == "hypothesis" and self.init_std != field.default:
            raise ValueError("method.init_std has a meaning only with method.start=random: drop it or change the start")
        return self

    @model_validator(mode="after")
    def _a_judge_has_labels_to_compare(self) -> Self:
        if self.judge != "probe" and self.head != "fitted":
            raise ValueError(f"method.judge={self.judge} needs method.head=fitted: drop one of the two")
        if self.wants_judge and self.shortlist == 1:
            raise ValueError("method.shortlist=1 leaves a judge nothing to compare: set 2 or more, or judge=probe")
        return self

    @property
    def reads_alone(self) -> bool:
        return True

    @property
    def starts_from(self) -> Form | None:
        return self.form if self.start == "hypothesis" else None

    @property
    def form(self) -> Form:
        assert self.injects is not None
        return Form(self.injects, self.first_layer)

    @property
    def wants_states(self) -> bool:
        return self.head == "fitted"

    @property
    def wants_judge(self) -> bool:
        return self.judge == "fitted"

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> LabelTuning:
        head = build_head(self.trained_head, facts, label_count)
        shortlist, producer = self.joint_readings(label_count), self.build_producer(facts, hypothesis_tokens)
        if self.wants_judge:
            judge = FittedJudge(facts.pooled_width, label_count)
            return JudgedLabelTuning(producer, head, shortlist, self.form, judge)
        if self.judge == "label_aware":
            probe = FittedHead(facts.pooled_width, label_count)
            return LabelTuningBesideProbe(producer, head, shortlist, self.form, probe)
        kind = FittedLabelTuning if self.head == "fitted" else LabelTuning
        return kind(producer, head, shortlist, self.form)

    def trainable_count(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
        """With the linear head 2*P^2*L*G*D + 3H (LT-prefix) or H^2 + 2H (LT-prompt)."""
        head = head_parameters(self.trained_head, facts)
        return self.producer_parameters(facts, hypothesis_tokens) + head

    @property
    def trained_head(self) -> HeadName:
        """What scores a text that is read with a label, if it is no fitted judge."""
        return "label_aware" if self.judge == "label_aware" else self.head

    def fitted_state(self, readings: Readings) -> dict[str, Tensor]:
        return fitted_head(readings, "probe" if self.judge == "label_aware" else "head")

    def joint_readings(self, label_count: int) -> int | None:
        # The linear head sees no label in a text that is read alone.
        if self.shortlist is None or self.head == "linear" or label_count <= self.shortlist:
            return None
        return self.shortlist

    def injected_tokens(self, hypothesis_tokens: int) -> int:
        return hypothesis_tokens

    @abstractmethod
    def build_producer(self, facts: BackboneFacts, hypothesis_tokens: int) -> nn.Module:
        """The trainable producer: (label states [K, P, H], mask [K, P], start [K, P, W]) -> Injection for K rows.

        Where it starts from the hypotheses, what it adds to `start` is zero at first; else `start` is None.
        """

    @abstractmethod
    def producer_parameters(self, facts: BackboneFacts, hypothesis_tokens: int) -> int:
        """Trainable elements of the producer, by formula."""
