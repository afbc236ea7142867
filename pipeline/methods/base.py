"""What every tuning method is: it lets the backbone read texts, as often as it needs to, and scores labels.

A method is trained inside a ZeRO-3 engine, which shows a module's parameters only while that module's `forward`
runs: so every parameter is read in the `forward` of the module that owns it, never from outside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts, Form
from pipeline.backbone.injection import Injection
from pipeline.backbone.sites import Edits
from pipeline.core.settings import Settings

if TYPE_CHECKING:
    from pipeline.methods.hypothesis_mean import HypothesisMean


class Reader(Protocol):
    """The backbone before a batch of B texts."""

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        """Pooled outputs [B * n, M] of the texts, each read n = `copies` times in a row; `injection` has B * n rows."""

    def start(self, labels: Tensor, /) -> Tensor | None:
        """What the injections of labels [N] start from: [N, P, W] (`pipeline.backbone.as_injection`).

        None unless the method's `starts_from` names a form.
        """

    def likelihood(self, labels: Tensor, /) -> Tensor:
        """Mean log-probability per token of labels' hypotheses right behind each text: labels [B, C] -> [B, C] float32.

        Only for methods with `reads_hypotheses`, on decoders.
        """


@dataclass(frozen=True)
class Vocabulary:
    """The backbone's words, and what it reads for them."""

    tokens: Sequence[int]
    """Ids of all tokens that are not special."""
    encode: Callable[[str], list[int]]
    """A text's token ids, without special tokens."""
    embed: Callable[[Tensor], Tensor]
    """Token ids [N] -> input embeddings [N, H], float32."""
    hypotheses: Tensor | None = None
    """[P, W]: keys and values of P tokens of the labels' hypotheses, where `MethodConfig.starts_with` asks for them."""


@dataclass(frozen=True)
class Reading:
    """N texts that the frozen backbone has read alone."""

    states: Tensor
    """[N, M] float32, pooled"""
    labels: NDArray[np.int64]
    """[N] label indices"""
    targets: Tensor | None = None
    """[N, K] in their place where some are soft: w_i times the probability of each label. None: w_i = 1 for all."""


@dataclass(frozen=True)
class Readings:
    """What a method is fitted to before any step: texts and labels, as the frozen backbone has read them."""

    train: Reading
    validation: Reading | None
    label_states: Tensor
    """[K, P, H]"""
    label_mask: Tensor
    """[K, P]"""
    mean: "HypothesisMean | None" = None
    """Where labels have several hypotheses, whose states those then are."""


class MethodConfig(Settings, ABC):
    """What the rest of the program knows of every method. Each method's own class adds `name` and what steers it."""

    if TYPE_CHECKING:
        name: str
        """The method's, and its file's; each class says which."""

    is_baseline: ClassVar[bool] = False
    """It is there to be compared with: `compare` takes the best of these, chosen on validation, for reference."""
    is_trained: ClassVar[bool] = True
    """False: nothing is learnt from the texts but how often each label occurs."""
    from_states: ClassVar[bool] = False
    """It is fitted to texts that are read alone, and scores them by that reading: no step is taken, and with stored
    states the backbone need not be loaded."""
    trains_backbone: ClassVar[bool] = False
    """The backbone's own weights are trained, which 8-bit ones cannot be."""
    open_labels: ClassVar[bool] = False
    """Labels that were not in training can be scored from their hypotheses alone."""
    reads_hypotheses: ClassVar[bool] = False
    """Decoders score how likely the labels' hypotheses are, for which their output layer is loaded."""
    injects: ClassVar[Literal["prompt", "prefix"] | None] = None
    """What enters the backbone."""
    came_later: ClassVar[Mapping[str, str]] = {}
    """Keys that the method had not at first, with what runs and adapters that do not name them were made with."""

    @property
    def takes_steps(self) -> bool:
        """Is it trained by gradient steps?"""
        return self.is_trained and not self.from_states

    @property
    def reads_alone(self) -> bool:
        """Does it read texts without an injection, by an untouched backbone?"""
        return False

    @property
    def form(self) -> Form | None:
        """How its injection enters the backbone."""
        return None if self.injects is None else Form(self.injects)

    def check_layers(self, facts: BackboneFacts) -> None:
        """UserError where the backbone, as far as it is read, lacks a layer that the method names."""
        if self.form is not None:
            self.form.width(facts)

    @property
    def starts_from(self) -> Form | None:
        """The form in which encode-labels keeps the hypotheses, for injections that start from them."""
        return None

    @property
    def starts_with(self) -> int | None:
        """P tokens of all hypotheses, read one behind the other, whose keys and values encode-labels keeps.

        What the method is initialized with; no adapter holds them. None: none.
        """
        return None

    @property
    def wants_states(self) -> bool:
        """Is it, or its start, fitted to the texts as they are read alone (encode-texts)?"""
        return self.from_states

    @property
    def wants_judge(self) -> bool:
        """Is its judge fitted to the texts as they are read with labels, before any step?"""
        return False

    @property
    def reads_stored(self) -> bool:
        """Do stored states take the place of reading a text alone, where it is scored?"""
        return self.wants_states and self.reads_alone

    @property
    def trained_as(self) -> "MethodConfig":
        """The method that trains what is used as this one."""
        return self

    @abstractmethod
    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "TuningMethod":
        """The method for a backbone of these sizes and K labels, whose hypotheses have at most P tokens."""

    @abstractmethod
    def trainable_count(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
        """Trainable elements outside the backbone, by formula."""

    def joint_readings(self, label_count: int) -> int | None:
        """Rows that a text takes at most, where all its labels are scored in one go; `label_count`: K of training.

        None: a row per label, so that labels can be scored apart.
        """
        return 1

    def injected_tokens(self, hypothesis_tokens: int) -> int:
        """Positions that the injection takes, where hypotheses have at most P = `hypothesis_tokens`."""
        return 0

    def untrained_state(self, label_counts: Sequence[int]) -> dict[str, Tensor]:
        """The state of a method that is not trained, from the number of training texts of each label."""
        assert not self.is_trained
        return {}

    def fitted_state(self, readings: Readings) -> dict[str, Tensor]:
        """What of its state is fitted to the texts, before any step. Only where `wants_states`."""
        raise NotImplementedError


class TuningMethod(nn.Module, ABC):
    """The trainable part: turns readings of texts into label scores."""

    form: Form | None = None
    """How its injection enters the backbone, where that is not as usual: before the text, in all layers."""
    judges_hypotheses: ClassVar[bool] = False
    """Its scores depend on the label states. Where labels have several hypotheses, its candidates and states are those,
    whose labels `among` tells, and a label's score is the mean of theirs. Other methods get no states there."""
    trained: Tensor | None = None
    """[K] the label in training of each hypothesis that it judges, or -1; None: they are those of training."""
    edits: Edits | None = None
    """Modules of its own that act inside the backbone in each of its readings. One object for the method's life."""

    @abstractmethod
    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """How true each candidate label is of its text.

        candidates [B, C] label indices; label states [K, P, H] and their mask [K, P] -> [B, C] float32.
        """

    def injected_states(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """What the backbone makes of each text with each of its candidates [B, C] injected: [B, C, M].

        What a judge is fitted to. Only where the config `wants_judge`.
        """
        raise NotImplementedError

    @property
    def reads_injected(self) -> bool:
        """Does scoring read texts with its injections, with the parameters as they are?"""
        return True

    def beginning(self, states: Tensor, mask: Tensor, start: Tensor | None) -> Injection | None:
        """A row with what the prompts of all labels begin with, to be read once for all; None: they begin differently.

        Label states [K, P, H], mask [K, P], start [K, P, W].
        """
        return None

    @property
    def depends_on_hypotheses(self) -> bool:
        """Do scores depend on the label states, with the parameters as they are?"""
        return self.judges_hypotheses

    def edits_of(self, injection: Injection | None) -> Edits | None:
        """What acts in a reading with this injection."""
        return None if injection is None and self.edits is not None and self.edits.of_prompt else self.edits

    def begin_tuning(self) -> None:
        """Called before the first step."""

    def among(self, trained: Tensor) -> Self:
        """The same method, with the same modules, among other hypotheses: [K] their label in training, or -1."""
        other = copy(self)
        other.trained = trained
        return other

    def attach(self, model: nn.Module) -> None:
        """Puts trainable parameters into the backbone, or makes its own trainable, if the method works inside it."""

    def initialize(self, vocabulary: Vocabulary, names: Sequence[str]) -> None:
        """Takes start values that only the backbone has. `names`: the labels. Draws from torch's global generator."""
