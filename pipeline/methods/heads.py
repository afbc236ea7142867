"""Heads: the backbone's pooled output (and the label it judged) to scores, in float32.

bfloat16 has three digits: scores that it multiplies are often equal.
"""

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.pooling import pool

if TYPE_CHECKING:
    from pipeline.methods.conditional_logit import JudgeFit
    from pipeline.methods.logistic import Fit

SIMILARITY_SCALE = 10.0
"""Of cosines that are scores, before any training. Probabilities depend on it, the order of the labels does not."""
FITTED = "_bits"
"""What the names of numbers end with that are fitted, and kept as the integers that have their bits."""
HeadName = Literal["linear", "label_aware", "fitted"]


class ScoreLayer(nn.Linear):
    """A linear layer that multiplies in float32, whatever the dtype of its input and its weights."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., H] -> [..., outputs] float32 (float64 stays)."""
        bias = None if self.bias is None else _precise(self.bias)
        return functional.linear(_precise(inputs), _precise(self.weight), bias)


class LabelSimilarity(nn.Module):
    """A scaled cosine between the backbone's output and a linear map, at first the identity, of the label states.

    It starts training from the backbone's own idea of which label is near the text.
    """

    def __init__(self, hidden_size: int, initial_scale: float = SIMILARITY_SCALE) -> None:
        super().__init__()
        self.label_map = ScoreLayer(hidden_size, hidden_size, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(initial_scale)]))
        nn.init.eye_(self.label_map.weight)

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """pooled [N, M] or [B, 1, M], states [N, P, H], mask [N, P] -> scores [N] or [B, N]."""
        labels = self.label_map(pool(states, mask, "mean"))
        cosine = functional.cosine_similarity(_as_wide(_precise(pooled), labels), labels, dim=-1)
        return _precise(self.log_scale).exp() * cosine


def state_similarity(pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Scaled cosine of texts and labels, before any training.

    pooled [B, M], states [K, P, H], mask [K, P] -> [B, K], float32 at least.
    """
    labels = functional.normalize(pool(_precise(states), mask, "mean"), dim=-1)
    return SIMILARITY_SCALE * functional.normalize(_as_wide(_precise(pooled), labels), dim=-1) @ labels.T


class LinearHead(nn.Module):
    """The paper's head (App. A.5): two logits from M = H without bias; the score is logit(true) - logit(false).

    Binary cross-entropy on this score equals softmax cross-entropy on the two logits.
    """

    def __init__(self, pooled_width: int) -> None:
        super().__init__()
        self.logits = ScoreLayer(pooled_width, 2, bias=False)

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """pooled [B, M], states [B, P, H], mask [B, P] -> scores [B]. The label's states are not used."""
        true, false = self.logits(pooled).unbind(-1)
        return true - false


class LabelAwareHead(LinearHead):
    """The paper's head, started at zero, plus the similarity of text and label.

    With the linear head alone the first scores are a product of two small unknowns (head times the injection's
    effect), a slow saddle.
    """

    def __init__(self, pooled_width: int, hidden_size: int) -> None:
        super().__init__(pooled_width)
        self.similarity = LabelSimilarity(hidden_size)
        nn.init.zeros_(self.logits.weight)

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """pooled [N, M] or [B, 1, M], states [N, P, H], mask [N, P] -> scores [N] or [B, N]."""
        return super().forward(pooled, states, mask) + self.similarity(pooled, states, mask)


class FittedHead(nn.Module):
    """The probe as a head that is not trained: what is tuned before it has to do better by the same measure.

    Its weights stay under the penalty that they were fitted with. A label that was not in training has the weighted
    prior alone, with weight 1 where the probe does without. Numbers are kept as the integers that have their bits,
    which no cast to bfloat16 rounds.
    """

    weight_bits: Tensor
    bias_bits: Tensor
    prior_bits: Tensor

    def __init__(self, pooled_width: int, label_count: int) -> None:
        super().__init__()
        self.register_buffer("weight_bits", _bits(torch.zeros(label_count, pooled_width)))
        self.register_buffer("bias_bits", _bits(torch.zeros(label_count)))
        self.register_buffer("prior_bits", _bits(torch.ones(1)))

    @property
    def reads_labels(self) -> bool:
        """Does the probe use the prior?"""
        return bool(self.prior_bits != 0)

    @staticmethod
    def state_of(fit: "Fit") -> dict[str, Tensor]:
        """The head's state that is this probe, of states as they are."""
        prior = torch.tensor([fit.prior_weight])
        return {"weight_bits": _bits(fit.weight), "bias_bits": _bits(fit.bias), "prior_bits": _bits(prior)}

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor, trained: Tensor | None = None) -> Tensor:
        """pooled [B, M], states [K, P, H], mask [K, P] -> scores [B, K] float32 (float64 stays).

        trained [K]: each label's index in training, -1 for one that was not there; None: they are those of training.
        """
        weight, bias, prior_weight = (
            bits.view(torch.float64) for bits in (self.weight_bits, self.bias_bits, self.prior_bits)
        )
        scores = functional.linear(pooled.double(), weight, bias)
        prior = state_similarity(pooled, states, mask)
        if trained is not None:
            known = trained >= 0
            scores = scores[:, trained.clamp(min=0)].where(known, 0)
            prior_weight = torch.where(known | (prior_weight != 0), prior_weight, 1)
        return (scores + prior_weight * prior).to(_precise(pooled).dtype)


class FittedJudge(nn.Module):
    """How true a label is of a text, by what the backbone makes of both: one direction for all labels, not trained.

    It is the paper's linear head, fitted until it converges, with a bias of each label. A label that was not in
    training has the bias that makes up for its own wording, by its hypothesis' states, as the others' does on average.
    """

    weight_bits: Tensor
    bias_bits: Tensor
    unseen_bits: Tensor

    def __init__(self, pooled_width: int, label_count: int) -> None:
        super().__init__()
        self.register_buffer("weight_bits", _bits(torch.zeros(pooled_width)))
        self.register_buffer("bias_bits", _bits(torch.zeros(label_count)))
        self.register_buffer("unseen_bits", _bits(torch.zeros(1)))

    @staticmethod
    def state_of(fit: "JudgeFit", states: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The state of this fit; states [J, P, H] and mask [J, P] of the hypotheses, of the labels [J] of training."""
        own = fit.bias[labels] + _judged_alone(fit.weight, states, mask)
        return {
            "weight_bits": _bits(fit.weight),
            "bias_bits": _bits(fit.bias),
            "unseen_bits": _bits(own.mean().view(1)),
        }

    def forward(self, pooled: Tensor, rows: Tensor, states: Tensor, mask: Tensor, trained: Tensor) -> Tensor:
        """pooled [B, C, M]: texts, each read with C labels; states [K, P, H], mask [K, P] -> scores [B, C] float64.

        rows [B, C]: each label's place in `states`; trained [K]: its index in training, -1 where it was not there.
        """
        weight, bias, unseen = (
            bits.view(torch.float64) for bits in (self.weight_bits, self.bias_bits, self.unseen_bits)
        )
        others = unseen - _judged_alone(weight, states, mask)
        return pooled.double() @ weight + bias[trained.clamp(min=0)].where(trained >= 0, others)[rows]


def _judged_alone(weight: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """What a judge's direction [M] makes of hypotheses by themselves, states [K, P, H], mask [K, P]: [K] float64"""
    labels = pool(states.double(), mask, "mean")
    return labels @ _as_wide(weight, labels)


def balance(alone: Tensor, judged: Tensor) -> Tensor:
    """What is added to the means of the probe's scores and the judge's [B, C] of the labels that a text is read with.

    Then all of them together keep the probability that the probe gives them beside labels that it is not read with:
    [B, 1].
    """
    return alone.logsumexp(1, keepdim=True) - ((alone + judged) / 2).logsumexp(1, keepdim=True)


class ClassHead(nn.Module):
    """The usual head of a text classifier: K logits from M; label_aware adds the similarity of text and labels."""

    def __init__(self, name: HeadName, facts: BackboneFacts, label_count: int) -> None:
        super().__init__()
        self.logits = ScoreLayer(facts.pooled_width, label_count)
        self.similarity = LabelSimilarity(facts.hidden_size) if name == "label_aware" else None
        if self.similarity is not None:
            nn.init.zeros_(self.logits.weight)

    @property
    def reads_labels(self) -> bool:
        return self.similarity is not None

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor, trained: Tensor | None = None) -> Tensor:
        """pooled [B, M], states [K, P, H], mask [K, P] -> scores [B, K].

        trained [K]: each row's label in training; None: they are those of training.
        """
        scores: Tensor = self.logits(pooled)
        if trained is not None:
            scores = scores[:, trained]
        return scores if self.similarity is None else scores + self.similarity(pooled.unsqueeze(1), states, mask)


def build_head(name: HeadName, facts: BackboneFacts, label_count: int) -> nn.Module:
    """The head of label tuning of that name, for K labels of training."""
    match name:
        case "fitted":
            return FittedHead(facts.pooled_width, label_count)
        case "linear":
            return LinearHead(facts.pooled_width)
        case "label_aware":
            return LabelAwareHead(facts.pooled_width, facts.hidden_size)


def head_parameters(name: HeadName, facts: BackboneFacts) -> int:
    """Trainable elements of such a head, by formula."""
    return 0 if name == "fitted" else 2 * facts.pooled_width + beside_logits(name, facts.hidden_size)


def beside_logits(name: HeadName, hidden_size: int) -> int:
    """Trainable elements that a head has beside its logits."""
    return hidden_size**2 + 1 if name == "label_aware" else 0


def _as_wide(values: Tensor, labels: Tensor) -> Tensor:
    """The part of texts' states [..., M] that is of the layer which labels' states [..., H] are of: [..., H]."""
    return values[..., -labels.shape[-1] :]


def _bits(values: Tensor) -> Tensor:
    """float64 numbers as the integers that have their bits."""
    return values.double().contiguous().view(torch.int64)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
