"""What makes, of a text's states before a layer, the numbers that are added to a prompt's slots there."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.pooling import pool
from pipeline.core.errors import UserError

TokenPooling = Literal["attention", "mean", "adaptive_mean", "adaptive_max"]
ADAPTIVE = ("adaptive_mean", "adaptive_max")
ActivationName = Literal["gelu", "relu", "rational"]
ACTIVATION_PACE = 0.01
"""How many times as fast as the maps the numbers of an activation move: published rates are 1e-6 and 1e-4."""
GELU_NUMERATOR = (-9.33852837e-3, 0.534048595, 0.532412971, 0.201600028, 3.63702492e-2, 3.12984580e-3, 1.02878911e-4)
GELU_DENOMINATOR = (0.291752694, 0.181411752, 6.62456972e-2, -2.38114254e-3, 4.10575640e-4)
"""Of the rational function that is nearest to GELU from -8 to 8, by least squares: at most 0.011 from it there."""
START_STD = 0.05
"""Standard deviation of the first weights of IDPG's maps, as in its code."""


class Generator(nn.Module):
    """Adds U g(z_p) to slot p, where z_p is pooled from Z_t = D h_t of the text's tokens t.

    attention: sum_t w_tp Z_t, where w_tp is a softmax over the tokens of S Z_t; mean: over all tokens; adaptive_mean,
    adaptive_max: over the p-th of P parts of the text, and D h_t + b in the place of D h_t.
    """

    def __init__(
        self, tokens: int, hidden_size: int, rank: int, pooling: TokenPooling, activation: ActivationName
    ) -> None:
        super().__init__()
        self.tokens, self.pooling = tokens, pooling
        self.down = nn.Linear(hidden_size, rank, bias=pooling in ADAPTIVE)
        self.score = nn.Linear(rank, tokens, bias=False) if pooling == "attention" else None
        self.activation = build_activation(activation)
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    @classmethod
    def parameter_count(cls, tokens: int, hidden_size: int, rank: int, pooling: TokenPooling) -> int:
        """Trainable elements, by formula, without those of an activation."""
        return 2 * hidden_size * rank + {"attention": rank * tokens, "mean": 0}.get(pooling, rank)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, P + T, H], mask [B, P + T], the P slots first in each row -> the same with other slots."""
        slots, text = hidden[:, : self.tokens], hidden[:, self.tokens :].to(self.down.weight.dtype)
        added: Tensor = self.up(self.activation(self._pooled(self.down(text), mask[:, self.tokens :])))
        return torch.cat([slots + added.to(slots.dtype), hidden[:, self.tokens :]], dim=1)

    def _pooled(self, inner: Tensor, mask: Tensor) -> Tensor:
        """inner [B, T, r], mask [B, T], real tokens first -> [B, P, r]"""
        if self.pooling not in ADAPTIVE:
            scores = inner.new_zeros(*mask.shape, self.tokens) if self.score is None else self.score(inner)
            weights = scores.masked_fill(~mask.unsqueeze(-1), torch.finfo(scores.dtype).min).softmax(dim=1)
            return weights.transpose(1, 2) @ inner
        parts = adaptive_parts(mask, self.tokens)
        if self.pooling == "adaptive_mean":
            return parts.to(inner.dtype) @ inner / parts.sum(dim=2, keepdim=True).clamp(min=1)
        lowest = torch.finfo(inner.dtype).min
        most = [inner.masked_fill(~part.unsqueeze(-1), lowest).amax(dim=1) for part in parts.unbind(dim=1)]
        return torch.stack(most, dim=1).where(parts.any(dim=2, keepdim=True), 0)  # of a text without tokens


def adaptive_parts(mask: Tensor, count: int) -> Tensor:
    """Which tokens make each of `count` parts of a text, as in adaptive pooling: mask [B, T] -> [B, count, T] bool.

    Part p of a text of n tokens begins at floor(p n / count) and ends before ceil((p + 1) n / count). Real tokens come
    first in each row.
    """
    length = mask.sum(dim=1)[:, None, None]
    part = torch.arange(count, device=mask.device)[:, None]
    place = torch.arange(mask.shape[1], device=mask.device)
    return (place >= part * length // count) & (place * count < (part + 1) * length)


class Bottleneck(nn.Module):
    """U g(D x + b), a vector for each of P slots. U is zero at first."""

    def __init__(
        self, tokens: int, hidden_size: int, rank: int, hypercomplex: int | None, activation: ActivationName
    ) -> None:
        """UserError where the sizes of hypercomplex maps are not multiples of their number."""
        super().__init__()
        self.tokens, self.hidden_size = tokens, hidden_size
        self.down = _map(hidden_size, rank, hypercomplex)
        self.bias = nn.Parameter(torch.zeros(rank))
        self.activation = build_activation(activation)
        self.up = _map(rank, tokens * hidden_size, hypercomplex)
        nn.init.zeros_(self.up.parts if isinstance(self.up, HypercomplexLinear) else self.up.weight)

    @classmethod
    def parameter_count(cls, tokens: int, hidden_size: int, rank: int, hypercomplex: int | None) -> int:
        """Trainable elements, by formula, without those of an activation."""
        maps = rank * hidden_size * (1 + tokens)
        return rank + (maps if hypercomplex is None else 2 * hypercomplex**3 + maps // hypercomplex)

    def forward(self, sentences: Tensor) -> Tensor:
        """[B, H] -> [B, P, H]"""
        inner = self.activation(self.down(sentences.to(self.bias.dtype)) + self.bias)
        added: Tensor = self.up(inner)
        return added.unflatten(-1, (self.tokens, self.hidden_size))


class SelfAttention(nn.Module):
    """The mean over a text's tokens of softmax(E Q (E K)^T / sqrt(r)) E, where E are their states."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(hidden_size, rank, bias=False) for _ in range(2))

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """text [B, T, H], mask [B, T] -> [B, H]"""
        text = text.to(self.query.weight.dtype)
        queries, keys = self.query(text), self.key(text)
        scores = queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min).softmax(dim=2)
        received = pool(weights, mask, "mean")  # [B, T]: the mean of sums is the sum with mean weights
        return (received.unsqueeze(1) @ text).squeeze(1)


Summary = Callable[[Tensor, Tensor], Tensor]
"""(text [B, T, H], mask [B, T]) -> a vector for each text, [B, H]"""


class Shift(nn.Module):
    """Adds to the slots before a layer what the bottleneck makes of the text there, and a bias [P, H] of its own."""

    def __init__(self, bottleneck: Bottleneck, summary: Summary, *, biased: bool) -> None:
        """`biased`: False where the prompt enters, which is a bias itself."""
        super().__init__()
        self._shared = (bottleneck, summary)  # one for all layers: they are not this module's
        self.bias = nn.Parameter(torch.zeros(bottleneck.tokens, bottleneck.hidden_size)) if biased else None

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, P + T, H], mask [B, P + T], the P slots first in each row -> the same with other slots."""
        bottleneck, summary = self._shared
        slots, text = hidden[:, : bottleneck.tokens], hidden[:, bottleneck.tokens :]
        added = bottleneck(summary(text, mask[:, bottleneck.tokens :]))
        if self.bias is not None:
            added = added + self.bias
        return torch.cat([slots + added.to(slots.dtype), text], dim=1)


class Rational(nn.Module):
    """x -> (a_0 + a_1 x + ... + a_6 x^6) / (1 + |b_1 x + ... + b_5 x^5|), nearly GELU at first.

    Its twelve numbers are kept divided by their pace: Adam, which moves every number alike, moves them so much slower.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numerator = nn.Parameter(torch.tensor(GELU_NUMERATOR) / ACTIVATION_PACE)
        self.denominator = nn.Parameter(torch.tensor(GELU_DENOMINATOR) / ACTIVATION_PACE)

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape, and the same. Powers cancel each other: in float32 at least."""
        precise = values.to(torch.promote_types(values.dtype, torch.float32))
        above, below = precise.new_zeros(()), precise.new_zeros(())
        for factor in self.numerator.to(precise.dtype).flip(0):
            above = above * precise + ACTIVATION_PACE * factor
        for factor in self.denominator.to(precise.dtype).flip(0):
            below = (below + ACTIVATION_PACE * factor) * precise
        return (above / (1 + below.abs())).to(values.dtype)


def build_activation(name: ActivationName) -> nn.Module:
    kinds: dict[ActivationName, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "rational": Rational}
    return kinds[name]()


def activation_parameters(name: ActivationName) -> int:
    """Trainable elements of one activation."""
    return len(GELU_NUMERATOR + GELU_DENOMINATOR) if name == "rational" else 0


class HypercomplexLinear(nn.Module):
    """x -> W x, where W is the sum of n Kronecker products A_i [n, n] x B_i [out / n, in / n] (arXiv 2102.08597)."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        self.rules = nn.Parameter(torch.randn(count, count, count) * START_STD)
        self.parts = nn.Parameter(torch.randn(count, outputs // count, inputs // count) * START_STD)

    def forward(self, values: Tensor) -> Tensor:
        """[B, in] -> [B, out]"""
        blocks = torch.einsum("iab,icd->acbd", self.rules, self.parts)
        return functional.linear(values, blocks.flatten(2).flatten(0, 1))


def _map(inputs: int, outputs: int, count: int | None) -> nn.Linear | HypercomplexLinear:
    if count is not None:
        if inputs % count or outputs % count:
            raise UserError(f"method.hypercomplex={count}: a map from {inputs} to {outputs} cannot be made of it")
        return HypercomplexLinear(inputs, outputs, count)
    found = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(found.weight, std=START_STD)
    return found
