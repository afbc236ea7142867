"""The judge's fit: one direction for all labels, by penalized conditional logit, fitted until it converges.

Of each text with each of its candidate labels the backbone has made a state h [H]. The judge minimizes, over a
direction v [H] and a bias b [K] of each label,

    mean over texts of cross-entropy, among the text's candidates, of (v z + b) + (|v|^2 + |b|^2) / (2 C N)

where z is h less the mean of what was read with that label, standardized: what this text, not the label's wording, does
to the state. That is convex, so that the result depends on nothing else. Source: McFadden 1974, conditional logit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.methods.heads import balance
from pipeline.methods.logistic import CS, FOLDS, PATIENCE, Floats, minimum, quality


@dataclass(frozen=True)
class JudgedTexts:
    """N texts, each read with C labels injected, one after the other."""

    states: Tensor
    """[N, C, H]"""
    candidates: Tensor
    """[N, C] the labels: long"""
    labels: Tensor
    """[N] the true one: long"""

    def part(self, rows: NDArray[np.int64]) -> "JudgedTexts":
        chosen = torch.from_numpy(rows)
        return JudgedTexts(self.states[chosen], self.candidates[chosen], self.labels[chosen])


@dataclass(frozen=True)
class JudgeFit:
    """A fitted judge of states as they are, in float64: its score is `weight` h + `bias` of the label."""

    weight: Tensor
    """[H]"""
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
    if validation is None or alone is None:
        return fit_judge(train, label_count, _cross_validated(train, label_count))
    before = quality(alone.double(), validation.labels)
    found: list[tuple[tuple[float, float], JudgeFit]] = []
    for c in CS:
        judge = fit_judge(train, label_count, c)
        found.append((quality(judge.beside(alone, validation), validation.labels), judge))
        best = max(range(len(found)), key=lambda place: found[place][0])
        if len(found) - 1 - best >= PATIENCE:
            break
    after, judge = found[best]
    return JudgeFit(judge.weight, judge.bias, is_better=after > before)


def _cross_validated(train: JudgedTexts, label_count: int) -> float:
    """The C that does best on texts left out; the first where there is one text."""
    from sklearn.model_selection import KFold  # late: it takes a second, and most commands fit nothing

    count = len(train.labels)
    if count < 2:
        return CS[0]
    folds = list(KFold(min(FOLDS, count), shuffle=True, random_state=0).split(np.arange(count)))

    def mean_quality(c: float) -> tuple[float, ...]:
        parts = []
        for kept, left_out in folds:
            judge, others = fit_judge(train.part(kept), label_count, c), train.part(left_out)
            parts.append(quality(judge.scores(others), _places(others)))
        return tuple(np.mean(parts, axis=0).tolist())

    return max(CS, key=mean_quality)


def fit_judge(texts: JudgedTexts, label_count: int, c: float) -> JudgeFit:
    """The minimum, sought from zero by L-BFGS."""
    means = _means_by_label(texts, label_count)
    centred = texts.states - means[texts.candidates]
    deviation = centred.flatten(0, 1).double().std(dim=0, correction=0)
    spread = torch.where(deviation <= 1e-6 * means.double().abs().amax(0), 1, deviation)
    inputs, places = centred / spread.to(centred), _places(texts)
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
    weight = found[:width] / spread
    return JudgeFit(weight, found[width:] - means.double() @ weight)


def _means_by_label(texts: JudgedTexts, label_count: int) -> Tensor:
    """[K, H]: the mean of what was read with each label; of all of them for one that was read with no text."""
    rows, states = texts.candidates.flatten(), texts.states.flatten(0, 1)
    counts = torch.bincount(rows, minlength=label_count)
    sums = torch.zeros(label_count, states.shape[1], dtype=torch.float64).index_add_(0, rows, states.double())
    means = sums / counts.clamp(min=1).unsqueeze(1)
    means[counts == 0] = means[counts > 0].mean(dim=0)
    return means.to(states)


def _places(texts: JudgedTexts) -> Tensor:
    """[N]: where among its candidates each text's label stands."""
    return (texts.candidates == texts.labels.unsqueeze(1)).long().argmax(dim=1)
