"""L-Tuning: each label's hypothesis becomes an injection, and the backbone reads the text once per label."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import Form
from pipeline.backbone.injection import Injection, common_tokens
from pipeline.methods.base import Reader, TuningMethod
from pipeline.methods.heads import FittedHead, FittedJudge, balance


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

    def beginning(self, states: Tensor, mask: Tensor, start: Tensor | None) -> Injection | None:
        # A decoder reads the first words of a hypothesis without those behind them, so what the labels' hypotheses
        # begin with becomes the same prompt, unless dropout tells them apart.
        if start is None or self.training or not (count := common_tokens(start, mask)):
            return None
        return self.inject(states[:1, :count], mask[:1, :count], start[:1, :count])

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
    def reads_injected(self) -> bool:
        return bool(self.is_tuned)

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
