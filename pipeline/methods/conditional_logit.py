"""The judge's fit: one direction for all labels, by penalized conditional logit, fitted until it converges.

Of each text with each of its candidate labels the backbone has made a state h [M]. The judge minimizes, over a
direction v [M] and a bias b [K] of each label,

    mean over texts of cross-entropy, among the text's candidates, of (v z + b) + (|v|^2 + |b|^2) / (2 C N)

where z is h less the mean of what was read with that label, standardized: what this text, not the label's wording, does
to the state. That is convex, so that the result depends on nothing else. Source: McFadden 1974, conditional logit.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.methods.heads import balance
from pipeline.methods.logistic import CS, FOLDS, Choice, Floats, minimum, quality, while_they_help


@dataclass(frozen=True)
class JudgedTexts:
    """N texts, each read with C labels injected, one after the other."""

    states: Tensor
    """[N, C, M]"""
    candidates: Tensor
    """[N, C] the labels: long"""
    labels: Tensor
    """[N] the true one: long"""

    def part(self, rows: NDArray[np.int64]) -> "JudgedTexts":
        chosen = torch.from_numpy(rows)
        return JudgedTexts(self.states[chosen], self.candidates[chosen], self.labels[chosen])

    @property
    def places(self) -> Tensor:
        """[N]: where among its candidates each text's label stands."""
        return (self.candidates == self.labels.unsqueeze(1)).long().argmax(dim=1)


@dataclass(frozen=True)
class CentredTexts:
    """Texts as a judge is fitted to them."""

    texts: JudgedTexts
    inputs: Tensor
    """z [N, C, M]"""
    means: Tensor
    """[K, M] of what was read with each label"""
    deviation: Tensor
    """[M] from them, in float64; 1 for a unit that never changes"""

    @classmethod
    def of(cls, texts: JudgedTexts, label_count: int) -> "CentredTexts":
        """For K = `label_count` labels."""
        means = _means_by_label(texts, label_count)
        inputs = texts.states - means[texts.candidates]
        deviation = inputs.flatten(0, 1).double().std(dim=0, correction=0)
        deviation = torch.where(deviation <= 1e-6 * means.double().abs().amax(0), 1, deviation)
        return cls(texts, inputs / deviation.to(inputs), means, deviation)


@dataclass(frozen=True)
class JudgeFit:
    """A fitted judge of states as they are, in float64: its score is `weight` h + `bias` of the label."""

    weight: Tensor
    """[M]"""
    bias: Tensor
    """[K]"""
    is_better: bool = True
    """Than the probe alone, on validation; True without validation texts."""

    def scores(self, texts: JudgedTexts) -> Tensor:
        """[N, C] float64"""
        return (texts.states @ self.weight.to(texts.states)).double() + self.bias[texts.candidates]

    def beside(self, alone: Tensor, texts: JudgedTexts) -> Tensor:
        """What a text's scores are, with those of the probe [N, K]: [N, K] float64"""
        alone, judged = alone.double(), self.scores(texts)
        near = alone.gather(1, texts.candidates)
        return alone.scatter(1, texts.candidates, (near + judged) / 2 + balance(near, judged))


def choose_judge(
    train: JudgedTexts, label_count: int, validation: JudgedTexts | None, alone: Tensor | None
) -> JudgeFit:
    """The fit to `train`, among whose candidates the true label is, that does best on validation.

    There it is judged beside the probe, whose scores of the validation texts `alone` [N, K] are. Without validation
    texts, it is chosen by itself, by cross-validation.
    """
    centred = CentredTexts.of(train, label_count)
    if validation is None or alone is None:
        return fit_judge(centred, _cross_validated(train, label_count))
    judges = ((c, fit_judge(centred, c)) for c in CS)
    path = (Choice(judge, c, quality(judge.beside(alone, validation), validation.labels)) for c, judge in judges)
    best = max(while_they_help(path), key=lambda choice: choice.quality)
    return replace(best.found, is_better=best.quality > quality(alone.double(), validation.labels))


def _cross_validated(train: JudgedTexts, label_count: int) -> float:
    """The C that does best on texts left out; the first where there is one text."""
    from sklearn.model_selection import KFold  # late: it takes a second, and most commands fit nothing

    count = len(train.labels)
    if count < 2:
        return CS[0]
    folds = []
    for kept, left_out in KFold(min(FOLDS, count), shuffle=True, random_state=0).split(np.arange(count)):
        centred, others = CentredTexts.of(train.part(kept), label_count), train.part(left_out)
        folds.append([quality(fit_judge(centred, c).scores(others), others.places) for c in CS])
    means = np.mean(folds, axis=0).tolist()
    return CS[max(range(len(CS)), key=means.__getitem__)]


def fit_judge(centred: CentredTexts, c: float) -> JudgeFit:
    """The minimum, sought from zero by L-BFGS."""
    texts, inputs, means = centred.texts, centred.inputs, centred.means
    places, label_count = texts.places, len(means)
    width, penalty = inputs.shape[-1], 1 / (c * len(places))

    def loss(values: Floats) -> tuple[float, Floats]:
        found = torch.from_numpy(values)
        scores = (inputs @ found[:width].to(inputs)).double() + found[width:][texts.candidates]
        log_shares = scores.log_softmax(dim=1)
        wrong = log_shares.exp()
        wrong[torch.arange(len(wrong)), places] -= 1
        wrong /= len(wrong)
        slope = penalty * found
        slope[:width] += (wrong.flatten().to(inputs) @ inputs.flatten(0, 1)).double()
        slope[width:].index_add_(0, texts.candidates.flatten(), wrong.flatten())
        total = functional.nll_loss(log_shares, places) + penalty / 2 * found.square().sum()
        return float(total), slope.numpy()

    found = torch.from_numpy(minimum(loss, np.zeros(width + label_count)))
    weight = found[:width] / centred.deviation
    return JudgeFit(weight, found[width:] - means.double() @ weight)


def _means_by_label(texts: JudgedTexts, label_count: int) -> Tensor:
    """[K, M]: the mean of what was read with each label; of all of them for one that was read with no text."""
    rows, states = texts.candidates.flatten(), texts.states.flatten(0, 1)
    counts = torch.bincount(rows, minlength=label_count)
    sums = torch.zeros(label_count, states.shape[1], dtype=torch.float64).index_add_(0, rows, states.double())
    means = sums / counts.clamp(min=1).unsqueeze(1)
    means[counts == 0] = means[counts > 0].mean(dim=0)
    return means.to(states)
