"""A prompt to which each text adds: before chosen layers, what its tokens have become is pooled into the slots.

After IAPT (Zhu et al., arXiv 2405.18203), which writes the slots before every layer. Or what a sentence is when it is
read alone adds to the prompt: IDPG (Wu et al., arXiv 2204.04497).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.backbone.pooling import pool
from pipeline.backbone.sites import Edits, chosen_layers
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.core.errors import UserError
from pipeline.core.settings import Distinct
from pipeline.methods.base import Reader
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.prompt import PromptConfig, PromptTuning

START_STD = 0.05
"""Standard deviation of the first weights of IDPG's maps, as in its code."""


class GeneratedConfig(PromptConfig):
    """A soft prompt that depends on the text."""

    is_baseline: ClassVar[bool] = True

    name: Literal["generated"] = "generated"  # type: ignore[assignment]
    tokens: int = Field(default=4, ge=1, le=MOST_TOKENS)
    """Prompt tokens."""
    rank: int = Field(default=64, ge=1, le=WIDEST)
    """Bottleneck of a generator: H -> rank -> H."""
    layers: Distinct[int] | None = Field(default=None, min_length=1)
    """Layers, from 0, before which the text adds to the prompt; null: all."""
    pooling: Literal["attention", "mean"] = "attention"
    """How the text's tokens become one vector per prompt token: weighted by learned scores, or all alike."""
    source: Literal["tokens", "sentence"] = "tokens"
    """tokens: those of the text, as they are before each layer. sentence: before layer 0 the text's pooled state, for
    which it is read alone first; before others that of its first token, or with decoders its last; one map for all."""
    hypercomplex: int | None = Field(default=None, ge=1, le=WIDEST)
    """The maps of source sentence are sums of so many Kronecker products, with about so many times fewer parameters;
    null: plain."""

    @model_validator(mode="after")
    def _keys_belong_to_the_source(self) -> "GeneratedConfig":
        if self.source == "sentence" and self.pooling != "attention":
            raise ValueError("method.pooling has a meaning only with method.source=tokens: drop it")
        if self.source == "tokens" and self.hypercomplex is not None:
            raise ValueError("method.hypercomplex has a meaning only with method.source=sentence: drop it")
        return self

    @property
    def reads_alone(self) -> bool:
        return self.source == "sentence" and (self.layers is None or 0 in self.layers)

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> PromptTuning:
        kind = GeneratedTuning if self.source == "tokens" else SentenceTuning
        return kind(self, facts, self.build_head(facts, label_count))

    def build_generators(self, facts: BackboneFacts) -> dict[int, "Generator"]:
        """Layer -> what is called before it. UserError for a layer that the backbone has not."""
        learned = self.pooling == "attention"
        return {
            layer: Generator(self.tokens, facts.hidden_size, self.rank, learned=learned)
            for layer in chosen_layers(self.layers, facts)
        }

    def injector_parameters(self, facts: BackboneFacts) -> int:
        if self.source == "sentence":
            width, parts = self.tokens * facts.hidden_size, self.hypercomplex or 1
            biases = len({0, *chosen_layers(self.layers, facts)})
            cubes = 0 if self.hypercomplex is None else 2 * parts**3
            return cubes + self.rank * (facts.hidden_size + width) // parts + self.rank + biases * width
        one = 2 * facts.hidden_size * self.rank + (self.rank * self.tokens if self.pooling == "attention" else 0)
        return self.tokens * facts.hidden_size + len(chosen_layers(self.layers, facts)) * one


class GeneratedTuning(PromptTuning):
    """Prompt tuning, to whose prompt each text adds. At first it adds nothing."""

    def __init__(self, config: GeneratedConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config, facts, head)
        generators = config.build_generators(facts)
        self.generators = nn.ModuleList(generators.values())
        self.edits = Edits(before=generators, of_prompt=True)


class Generator(nn.Module):
    """Adds U g(sum_t w_tp Z_t) to slot p, where Z_t = D h_t and w_tp is a softmax over the text's tokens of S Z_t."""

    def __init__(self, tokens: int, hidden_size: int, rank: int, *, learned: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.score = nn.Linear(rank, tokens, bias=False) if learned else None
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, P + T, H], mask [B, P + T], the P slots first in each row -> the same with other slots."""
        slots, text = hidden[:, : self.tokens], hidden[:, self.tokens :].to(self.down.weight.dtype)
        inner = self.down(text)
        weights = self._weights(inner, mask[:, self.tokens :])
        added: Tensor = self.up(functional.gelu(weights.transpose(1, 2) @ inner))
        return torch.cat([slots + added.to(slots.dtype), hidden[:, self.tokens :]], dim=1)

    def _weights(self, inner: Tensor, mask: Tensor) -> Tensor:
        """inner [B, T, r], mask [B, T] -> [B, T, P], which sum to 1 over the text's tokens."""
        scores = inner.new_zeros(*mask.shape, self.tokens) if self.score is None else self.score(inner)
        return scores.masked_fill(~mask.unsqueeze(-1), torch.finfo(scores.dtype).min).softmax(dim=1)


class SentenceTuning(PromptTuning):
    """Prompt tuning, to whose prompt the text's sentence state adds. At first it adds nothing."""

    def __init__(self, config: GeneratedConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config, facts, head)
        layers = chosen_layers(config.layers, facts)
        self.reads_alone = config.reads_alone
        self.bottleneck = Bottleneck(config, facts.hidden_size)
        shifts = {layer: Shift(self.bottleneck, at_end=facts.is_decoder) for layer in layers if layer}
        self.shifts = nn.ModuleList(shifts.values())
        self.edits = Edits(before=shifts, of_prompt=True) if shifts else None

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        prompt = self.inject(len(candidates))
        if self.reads_alone:
            assert prompt is not None and prompt.prompt is not None
            prompt = Injection(mask=prompt.mask, prompt=prompt.prompt + self.bottleneck(read(None, 1)))
        scores: Tensor = self.head(read(prompt, 1), states, mask, self.trained)
        return scores.gather(1, candidates).float()


class Bottleneck(nn.Module):
    """U g(D x + b), a vector for each of P slots. U is zero at first."""

    def __init__(self, config: GeneratedConfig, hidden_size: int) -> None:
        """UserError where the sizes of hypercomplex maps are not multiples of their number."""
        super().__init__()
        self.tokens, self.hidden_size = config.tokens, hidden_size
        self.down = _map(hidden_size, config.rank, config.hypercomplex)
        self.bias = nn.Parameter(torch.zeros(config.rank))
        self.up = _map(config.rank, config.tokens * hidden_size, config.hypercomplex)
        nn.init.zeros_(self.up.parts if isinstance(self.up, HypercomplexLinear) else self.up.weight)

    def forward(self, sentences: Tensor) -> Tensor:
        """[B, H] -> [B, P, H]"""
        inner = functional.gelu(self.down(sentences.to(self.bias.dtype)) + self.bias)
        added: Tensor = self.up(inner)
        return added.unflatten(-1, (self.tokens, self.hidden_size))


class Shift(nn.Module):
    """Adds to the slots before a layer what the bottleneck makes of one token there, and a bias [P, H] of its own."""

    def __init__(self, bottleneck: Bottleneck, *, at_end: bool) -> None:
        super().__init__()
        self._bottleneck = (bottleneck,)  # one for all layers: it is not this module's
        self.at_end = at_end
        self.bias = nn.Parameter(torch.zeros(bottleneck.tokens, bottleneck.hidden_size))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, P + T, H], mask [B, P + T], the P slots first in each row -> the same with other slots."""
        [bottleneck] = self._bottleneck
        slots, text = hidden[:, : bottleneck.tokens], hidden[:, bottleneck.tokens :]
        sentences = pool(text, mask[:, bottleneck.tokens :], "last" if self.at_end else "first")
        return torch.cat([slots + (bottleneck(sentences) + self.bias).to(slots.dtype), text], dim=1)


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
