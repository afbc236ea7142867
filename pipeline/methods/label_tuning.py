"""L-Tuning: each label's hypothesis becomes an injection, and the backbone reads the text once per label."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts, Form
from pipeline.backbone.injection import Injection
from pipeline.core.bounds import MOST_TOKENS
from pipeline.methods.base import MethodConfig, Reader, Readings, TuningMethod
from pipeline.methods.heads import FittedHead, FittedJudge, HeadName, balance, build_head, head_parameters
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

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "LabelTuning":
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


class LabelTuning(TuningMethod):
    """The whole trainable part: `producer` turns label states into an injection, `head` turns outputs into scores."""

    judges_hypotheses: ClassVar[bool] = True

    def __init__(self, producer: nn.Module, head: nn.Module, shortlist: int | None, form: Form) -> None:
        super().__init__()
        self.producer = producer
        self.head = head
        self.shortlist = shortlist
        self.form = form

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Every candidate's score with its label injected; beyond a shortlist, that of the text read alone.

        A shortlisted label has the mean of both. The choice follows the scores of the moment, so that training sees
        the wrong labels that are hardest to tell from the true one, and evaluation the same number of readings.
        """
        if self.shortlist is None:
            return self._injected_scores(read, candidates, states, mask)
        alone = self.head(read(None, 1).unsqueeze(1), states, mask).float().gather(1, candidates)
        nearest = _nearest(alone, candidates, self.shortlist)
        injected = self._injected_scores(read, candidates.gather(1, nearest), states, mask)
        return alone.scatter(1, nearest, (alone.gather(1, nearest) + injected) / 2)

    def injected_states(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        used, rows = candidates.flatten().unique(return_inverse=True)
        pooled = read(self.inject(states[used], mask[used], read.start(used)).select(rows), candidates.shape[1])
        return pooled.view(*candidates.shape, -1)

    def _injected_scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        pooled, labels = self.injected_states(read, candidates, states, mask).flatten(0, 1), candidates.flatten()
        return self.score(pooled, states[labels], mask[labels]).view_as(candidates)

    def inject(self, states: Tensor, mask: Tensor, start: Tensor | None = None) -> Injection:
        """What enters the backbone for each label: states [K, P, H], mask [K, P], start [K, P, W] -> K rows."""
        injection = self.producer(states, mask, start)
        assert isinstance(injection, Injection)
        return injection

    def score(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """How true each row's label is: pooled [B, M], its label's states [B, P, H] and mask [B, P] -> [B] float32."""
        scores = self.head(pooled, states, mask)
        assert isinstance(scores, Tensor)
        return scores.float()


class ProbeFirst(LabelTuning):
    """Label tuning that is the probe before the first step, and reads nothing else.

    So training is kept only where it does better, and where it never does, the adapter costs no more than the probe.
    """

    is_tuned: Tensor

    def __init__(self, producer: nn.Module, head: nn.Module, shortlist: int | None, form: Form) -> None:
        super().__init__(producer, head, shortlist, form)
        self.register_buffer("is_tuned", torch.zeros(1, dtype=torch.int64))

    def begin_tuning(self) -> None:
        self.is_tuned.fill_(1)

    @property
    @abstractmethod
    def fitted(self) -> FittedHead:
        """The probe."""

    @property
    def depends_on_hypotheses(self) -> bool:
        return bool(self.is_tuned) or self.fitted.reads_labels

    def _alone(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The probe's scores [B, C] of the texts alone."""
        scores: Tensor = self.fitted(read(None, 1), states, mask, self.trained)
        return scores.float().gather(1, candidates)


class LabelTuningBesideProbe(ProbeFirst):
    """Scores are the mean of the probe's and of a label tuning's that is trained by itself, with a head of its own.

    Where training texts are few, the probe makes no error on them: through it, or in a sum with it, there would be
    nothing to learn. So steps see what they train alone.
    """

    def __init__(
        self, producer: nn.Module, head: nn.Module, shortlist: int | None, form: Form, probe: FittedHead
    ) -> None:
        super().__init__(producer, head, shortlist, form)
        self.probe = probe

    @property
    def fitted(self) -> FittedHead:
        return self.probe

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Every candidate's score; in training the head's alone."""
        if self.training:
            return super().scores(read, candidates, states, mask)
        alone = self._alone(read, candidates, states, mask)
        return (alone + super().scores(read, candidates, states, mask)) / 2 if self.is_tuned else alone


class FittedLabelTuning(ProbeFirst):
    """Label tuning that adds to the probe: scores are the mean of the text's, read alone and read with the label."""

    @property
    def fitted(self) -> FittedHead:
        assert isinstance(self.head, FittedHead)
        return self.head

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Every candidate's score, beyond a shortlist that of the text read alone."""
        alone = self._alone(read, candidates, states, mask)
        if not self.is_tuned:
            return alone
        nearest = _nearest(alone, candidates, self.shortlist or candidates.shape[1])
        injected = self._injected_scores(read, candidates.gather(1, nearest), states, mask)
        near = alone.gather(1, nearest)
        return alone.scatter(1, nearest, (near + injected) / 2 + self._balance(near, injected, candidates.shape[1]))

    def _injected_scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        used, rows = candidates.flatten().unique(return_inverse=True)
        pooled = self.injected_states(read, candidates, states, mask).flatten(0, 1)
        trained = used if self.trained is None else self.trained[used]
        scores = self.head(pooled, states[used], mask[used], trained).float()
        return scores.gather(1, rows.unsqueeze(1)).view_as(candidates)

    def _balance(self, alone: Tensor, injected: Tensor, count: int) -> Tensor | float:
        """What makes the scores [B, C] of the labels that are read comparable with others of the text's `count`."""
        return 0.0


class JudgedLabelTuning(FittedLabelTuning):
    """The same with a judge: the probe scores the text alone, the judge what is read of it with the label.

    Beyond a shortlist, what the labels that a text is read with have together stays what the probe gives them, and is
    shared out anew: probe and judge have no common zero, and a label that is read must have no advantage by that.
    """

    def __init__(
        self, producer: nn.Module, head: nn.Module, shortlist: int | None, form: Form, judge: FittedJudge
    ) -> None:
        super().__init__(producer, head, shortlist, form)
        self.judge = judge

    def _injected_scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        used, rows = candidates.unique(return_inverse=True)
        trained = used if self.trained is None else self.trained[used]
        pooled = self.injected_states(read, candidates, states, mask)
        scores: Tensor = self.judge(pooled, rows, states[used], mask[used], trained)
        return scores.float()

    def _balance(self, alone: Tensor, injected: Tensor, count: int) -> Tensor | float:
        return 0.0 if alone.shape[1] == count else balance(alone, injected)


def _nearest(alone: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Places [B, count] of the candidates [B, C] with the best scores [B, C], or of all if they are fewer.

    What stands twice, as the last hypothesis of a label that has fewer than others, is taken once.
    """
    again = functional.pad(candidates[:, 1:] == candidates[:, :-1], (1, 0))
    return alone.masked_fill(again, float("-inf")).topk(min(count, candidates.shape[1])).indices
