"""Penalized multinomial logistic regression, fitted until it converges, with a prior over labels as an offset.

It minimizes, over weights V [K, M], biases b [K] and, where there is a prior, its weight w,

    mean over texts of cross-entropy(w * prior + V x + b) + |V|^2 / (2 C N)

which is convex, so that the result depends on nothing else. Without a prior it is scikit-learn's LogisticRegression.
Where texts have weights and soft labels, the mean is a weighted one, and N the sum of the weights.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.methods.base import Reading, Readings
from pipeline.methods.heads import FittedHead, state_similarity

Floats = NDArray[np.float64]

CS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Values of C to choose from, of standardized states."""
MOST_ITERATIONS = 2_000
PATIENCE = 2
"""Weaker penalties are tried until so many in a row have brought nothing: those that fit best take longest to fit."""
TOLERANCE = 1e-4
"""Largest slope at the minimum, as scikit-learn's."""
FOLDS = 5


@dataclass(frozen=True)
class Texts:
    """N texts to fit on, or to choose a penalty by. The fit is computed in the dtype of their states."""

    states: Tensor
    """[N, M], standardized"""
    labels: Tensor
    """[N] long"""
    prior: Tensor
    """[N, K]: how well each label goes with each text, before any training."""
    targets: Tensor | None = None
    """[N, K]: see `Reading`; then its sum is the N of the penalty. Such texts are not cross-validated."""

    def part(self, rows: NDArray[np.int64]) -> "Texts":
        chosen = torch.from_numpy(rows)
        return Texts(self.states[chosen], self.labels[chosen], self.prior[chosen])


@dataclass(frozen=True)
class Fit:
    """A fitted regression, in float64."""

    weight: Tensor
    """V [K, M]"""
    bias: Tensor
    """b [K]"""
    prior_weight: float = 0.0
    """w; 0 where the prior is not used."""

    def scores(self, texts: Texts) -> Tensor:
        """[N, K], in the dtype of the states"""
        weight, bias = self.weight.to(texts.states), self.bias.to(texts.states)
        return torch.addmm(bias, texts.states, weight.T) + self.prior_weight * texts.prior


Found = TypeVar("Found")


@dataclass(frozen=True)
class Choice(Generic[Found]):
    """A fit, and how it does on texts that it was not fitted to: accuracy, then mean log-probability of the truth."""

    found: Found
    c: float
    quality: tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Mean and spread of each unit [M], in float64."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "Scale":
        """Those of states [N, M]."""
        exact = states.double()
        mean, deviation = exact.mean(dim=0), exact.std(dim=0, correction=0)
        deviation[deviation <= 1e-6 * mean.abs()] = 1  # a unit that never changes, but for rounding
        return cls(mean, deviation)

    def standardized(self, states: Tensor) -> Tensor:
        return ((states.double() - self.mean) / self.deviation).to(states)


def fitted_head(readings: Readings, module: str = "head") -> dict[str, Tensor]:
    """The state of a method's `FittedHead`, under that name."""
    state = FittedHead.state_of(fit_to_readings(readings, CS, (False, True)))
    return {f"{module}.{name}": value for name, value in state.items()}


def fit_to_readings(readings: Readings, cs: Sequence[float], priors: Sequence[bool]) -> Fit:
    """The fit that `choose` finds on the standardized states of these texts, as one to the states as they are."""
    scale = Scale.of(readings.train.states)

    def prepared(reading: Reading) -> Texts:
        prior = state_similarity(reading.states, readings.label_states.to(reading.states), readings.label_mask)
        if readings.mean is not None:
            prior = readings.mean.of_all(prior)
        return Texts(scale.standardized(reading.states), torch.from_numpy(reading.labels), prior, reading.targets)

    validation = None if readings.validation is None else prepared(readings.validation)
    found = choose(prepared(readings.train), validation, cs, priors)
    weight = found.weight / scale.deviation
    return Fit(weight, found.bias - weight @ scale.mean, found.prior_weight)


def best_without_prior(train: Reading, validation: Reading, label_count: int, cs: Sequence[float]) -> Choice[Fit]:
    """The fit to standardized states that does best on validation, and how well it does."""
    scale = Scale.of(train.states)

    def prepared(reading: Reading) -> Texts:
        none = torch.zeros(len(reading.labels), label_count)
        return Texts(scale.standardized(reading.states), torch.from_numpy(reading.labels), none)

    return _best(prepared(train), prepared(validation), cs, (False,))


def choose(train: Texts, validation: Texts | None, cs: Sequence[float], priors: Sequence[bool]) -> Fit:
    """The fit to `train` whose C, and whether it uses the prior, do best on validation texts.

    Without them by cross-validation; where a label has one text only, nothing can be left out, and the first C and
    prior are taken.
    """
    if validation is not None:
        return _best(train, validation, cs, priors).found
    assert train.targets is None
    from sklearn.model_selection import StratifiedKFold  # late: it takes a second, and most commands fit nothing

    smallest = int(np.unique(train.labels.numpy(), return_counts=True)[1].min())
    if smallest < 2:
        return fit(train, cs[0], use_prior=priors[0])
    folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
    chosen = [
        _best(train.part(kept), train.part(left_out), cs, priors)
        for kept, left_out in folds.split(train.states, train.labels)
    ]
    prior = float(np.median([choice.found.prior_weight != 0 for choice in chosen])) > 0.5 or priors == (True,)
    return fit(train, float(np.median([choice.c for choice in chosen])), use_prior=prior)


def _best(train: Texts, validation: Texts, cs: Sequence[float], priors: Sequence[bool]) -> Choice[Fit]:
    """The best C without the prior; with it, if both are allowed, the best of that C and its neighbours."""
    tried = sorted(cs)
    found: list[Choice[Fit]] = []
    for use_prior in priors:
        if found:
            place = tried.index(max(found, key=lambda choice: choice.quality).c)
            tried = tried[max(0, place - 1) : place + 2]
        found += while_they_help(_path(train, validation, tried, use_prior))
    return max(found, key=lambda choice: choice.quality)


def _path(train: Texts, validation: Texts, cs: Sequence[float], use_prior: bool) -> Iterator[Choice[Fit]]:
    """Fits from the strongest penalty on, each started where the one before ended."""
    found = None
    for c in cs:
        found = fit(train, c, use_prior=use_prior, start=found)
        yield Choice(found, c, quality(found.scores(validation).double(), validation.labels))


def while_they_help(path: Iterable[Choice[Found]]) -> list[Choice[Found]]:
    """The first of these, from the strongest penalty on: up to `PATIENCE` behind the best of them."""
    tried: list[Choice[Found]] = []
    for choice in path:
        tried.append(choice)
        best = max(range(len(tried)), key=lambda place: tried[place].quality)
        if len(tried) - 1 - best >= PATIENCE:
            break
    return tried


def quality(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of float64 scores [N, K], with the true labels [N]: see `Choice.quality`."""
    log_loss = torch.nn.functional.cross_entropy(scores, labels)
    return float((scores.argmax(dim=1) == labels).double().mean()), -float(log_loss)


def fit(texts: Texts, c: float, *, use_prior: bool, start: Fit | None = None) -> Fit:
    """The minimum, sought from `start`, or from zero, by L-BFGS."""
    count, width = texts.prior.shape[1], texts.states.shape[1]
    penalty = 1 / (c * _count(texts))

    def unpacked(values: Floats) -> Fit:
        found = torch.from_numpy(values)
        weight, bias = found[: count * width].view(count, width), found[count * width :][:count]
        return Fit(weight, bias, float(values[-1]) if use_prior else 0.0)

    def loss(values: Floats) -> tuple[float, Floats]:
        now = unpacked(values)
        cross_entropy, wrong = _errors(now.scores(texts).log_softmax(dim=1), texts)
        slope = [((wrong.T @ texts.states).double() + penalty * now.weight).flatten(), wrong.double().sum(dim=0)]
        if use_prior:
            slope.append((wrong * texts.prior).double().sum().view(1))
        total = cross_entropy + penalty / 2 * now.weight.square().sum()
        return float(total), torch.cat(slope).numpy()

    begin = start or Fit(torch.zeros(count, width).double(), torch.zeros(count).double())
    first = torch.cat([begin.weight.flatten(), begin.bias, torch.tensor([begin.prior_weight] * use_prior).double()])
    return unpacked(minimum(loss, first.numpy()))


def minimum(loss: Callable[[Floats], tuple[float, Floats]], first: Floats) -> Floats:
    """Where a convex loss, given with its slope, is least, sought from `first` by L-BFGS."""
    from scipy.optimize import minimize

    options = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS, "ftol": 1e-12, "gtol": TOLERANCE}
    found: Floats = minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
    return found


def _count(texts: Texts) -> float:
    """N, or the sum of the weights."""
    return len(texts.labels) if texts.targets is None else float(texts.targets.double().sum())


def _errors(log_shares: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
    """The (weighted) mean cross-entropy of log-probabilities [N, K], and its slope by the scores [N, K]."""
    if texts.targets is None:
        cross_entropy = torch.nn.functional.nll_loss(log_shares.double(), texts.labels)
        wrong = log_shares.exp()
        wrong[torch.arange(len(wrong)), texts.labels] -= 1
        return cross_entropy, wrong / len(wrong)
    targets, count = texts.targets.to(log_shares), _count(texts)
    wrong = log_shares.exp() * targets.sum(dim=1, keepdim=True) - targets
    return -(targets.double() * log_shares.double()).sum() / count, wrong / count
