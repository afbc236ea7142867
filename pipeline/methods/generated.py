"""A prompt to which each text adds: before chosen layers, what its tokens have become is pooled into the slots.

After IAPT (Zhu et al., arXiv 2405.18203), which writes the slots before every layer. Or what a sentence is when it is
read alone adds to the prompt: IDPG (Wu et al., arXiv 2204.04497). Or the prompt enters at a layer further up, and is
made of what the layers below have made of the text: Late Prompt Tuning (Liu et al., arXiv 2210.11292); or of tokens
that attend to one another: ID-SPAM (Muppidi et al., arXiv 2506.05629).
"""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.backbone.pooling import pool
from pipeline.backbone.sites import Edits, chosen_layers
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.core.settings import Distinct
from pipeline.methods.base import Reader
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.prompt import PromptConfig, PromptTuning
from pipeline.methods.prompt_generators import (
    ActivationName,
    Bottleneck,
    Generator,
    SelfAttention,
    Shift,
    TokenPooling,
    activation_parameters,
)


class GeneratedConfig(PromptConfig):
    """A soft prompt that depends on the text."""

    is_baseline: ClassVar[bool] = True

    name: Literal["generated"] = "generated"  # type: ignore[assignment]
    tokens: int = Field(default=4, ge=1, le=MOST_TOKENS)
    """Prompt tokens."""
    rank: int = Field(default=64, ge=1, le=WIDEST)
    """Bottleneck of a generator: H -> rank -> H."""
    layers: Distinct[int] | None = Field(default=None, min_length=1)
    """Layers, from 0, before which the text adds to the prompt; null: all from first_layer on."""
    pooling: TokenPooling = "attention"
    """How the text's tokens become one vector per prompt token. attention: a mean weighted by learned scores; mean: a
    plain mean; adaptive_mean, adaptive_max: the text is cut into one part per prompt token, and each part is pooled."""
    activation: ActivationName = "gelu"
    """Activation function of the bottleneck: gelu, relu, or rational, a learned quotient of polynomials that starts as
    GELU."""
    source: Literal["tokens", "sentence", "attended"] = "tokens"
    """What the prompt is made from. tokens: the states of the text's tokens before each layer. sentence: before layer 0
    the text's pooled state, for which it is read alone first; before other layers the state of its first token (in
    decoders its last). attended: the mean of the tokens' states after one self-attention over them. With sentence and
    attended all layers share one map."""
    hypercomplex: int | None = Field(default=None, ge=1, le=WIDEST)
    """The maps of source sentence or attended are sums of so many Kronecker products, with about so many times fewer
    parameters; null: plain."""

    @model_validator(mode="after")
    def _keys_belong_to_the_source(self) -> "GeneratedConfig":
        if self.source != "tokens" and self.pooling != "attention":
            raise ValueError("method.pooling has a meaning only with method.source=tokens: drop it")
        if self.source == "tokens" and self.hypercomplex is not None:
            raise ValueError("method.hypercomplex has a meaning only with method.source=sentence or attended: drop it")
        if self.layers is not None and min(self.layers) < self.first_layer:
            raise ValueError(
                f"method.layers: before layer {min(self.layers)} there is no prompt to add to, which enters at "
                f"method.first_layer={self.first_layer}: drop one of the two"
            )
        return self

    @property
    def reads_alone(self) -> bool:
        return self.source == "sentence" and self.first_layer == 0 and (self.layers is None or 0 in self.layers)

    def check_layers(self, facts: BackboneFacts) -> None:
        super().check_layers(facts)
        self.text_layers(facts)

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> PromptTuning:
        kind = GeneratedTuning if self.source == "tokens" else SentenceTuning
        return kind(self, facts, self.build_head(facts, label_count))

    def text_layers(self, facts: BackboneFacts) -> list[int]:
        """Before which the text adds to the prompt. UserError for a layer that the backbone has not."""
        return [layer for layer in chosen_layers(self.layers, facts) if layer >= self.first_layer]

    def build_generators(self, facts: BackboneFacts) -> dict[int, Generator]:
        """Layer -> what is called before it, with source tokens."""
        sizes = (self.tokens, facts.hidden_size, self.rank)
        return {layer: Generator(*sizes, self.pooling, self.activation) for layer in self.text_layers(facts)}

    def build_bottleneck(self, facts: BackboneFacts) -> Bottleneck:
        """What is called before all layers, with the other sources."""
        return Bottleneck(self.tokens, facts.hidden_size, self.rank, self.hypercomplex, self.activation)

    def injector_parameters(self, facts: BackboneFacts) -> int:
        prompt, layers = super().injector_parameters(facts), self.text_layers(facts)
        sizes, activation = (self.tokens, facts.hidden_size, self.rank), activation_parameters(self.activation)
        if self.source == "tokens":
            return prompt + len(layers) * (Generator.parameter_count(*sizes, self.pooling) + activation)
        attention = 2 * facts.hidden_size * self.rank if self.source == "attended" else 0
        biases = len({self.first_layer, *layers}) * prompt
        return attention + Bottleneck.parameter_count(*sizes, self.hypercomplex) + activation + biases


class GeneratedTuning(PromptTuning):
    """Prompt tuning, to whose prompt each text adds. At first it adds nothing."""

    def __init__(self, config: GeneratedConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config, facts, head)
        generators = config.build_generators(facts)
        self.generators = nn.ModuleList(generators.values())
        self.edits = Edits(before=generators, of_prompt=True)


class SentenceTuning(PromptTuning):
    """Prompt tuning, to whose prompt one vector for each text adds. At first it adds nothing."""

    def __init__(self, config: GeneratedConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config, facts, head)
        self.reads_alone = config.reads_alone
        self.bottleneck = config.build_bottleneck(facts)
        self.attention = SelfAttention(facts.hidden_size, config.rank) if config.source == "attended" else None
        summary = self.attention or partial(pool, how="last" if facts.is_decoder else "first")
        shifts = {
            layer: Shift(self.bottleneck, summary, biased=layer != config.first_layer)
            for layer in config.text_layers(facts)
            if layer or not self.reads_alone  # else before layer 0 in `scores`
        }
        self.shifts = nn.ModuleList(shifts.values())
        self.edits = Edits(before=shifts, of_prompt=True) if shifts else None

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        prompt = self.inject(len(candidates))
        if self.reads_alone:
            assert prompt is not None and prompt.prompt is not None
            # Where states are joined, the last layer's, and of its statistics the mean: a prompt is no wider.
            sentences = read(None, 1)[:, -self.bottleneck.hidden_size :]
            prompt = Injection(mask=prompt.mask, prompt=prompt.prompt + self.bottleneck(sentences))
        scores: Tensor = self.head(read(prompt, 1), states, mask, self.trained)
        return scores.gather(1, candidates).float()
