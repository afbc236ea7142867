"""Where trained modules edit a text's states on their way through the frozen layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.trunk import exchange_states, layers_of
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Edits:
    """Modules by the site where they act. Each is (hidden [B, S, H], mask [B, S] bool) -> the edited hidden [B, S, H].

    They may change what the mask leaves out, which nothing sees, and must not look at it.
    """

    embeddings: nn.Module | None = None
    """Of the text's input embeddings, S = T, padded on either side. An injected prompt joins them afterwards."""
    before: Mapping[int, nn.Module] = field(default_factory=dict)
    """Of what a layer gets, by its number, from 0. L: of what the last one leaves, before a final norm.

    Real tokens come first in each row, an injected prompt's before the text's: S = P + T."""
    of_prompt: bool = False
    """They are of an injected prompt: a text that is read without one is not edited."""

    @property
    def first_layer(self) -> int:
        """The lowest that they act before; -1: on the embeddings."""
        return min(self.before, default=0) if self.embeddings is None else -1


def chosen_layers(layers: Sequence[int] | None, facts: BackboneFacts) -> list[int]:
    """Of method.layers; None: all. UserError for one that the backbone has not."""
    chosen = range(facts.layers) if layers is None else layers
    if strays := [layer for layer in chosen if not 0 <= layer < facts.layers]:
        raise UserError(f"method.layers: {strays[0]} is none of the backbone's layers 0 to {facts.layers - 1}")
    return list(chosen)


class Sites:
    """Puts edits into a model for the time of one call.

    They are hooks of the layers, outside of what activation checkpointing runs again; and each edit reads its own
    parameters in its own forward, as ZeRO-3 asks.
    """

    def __init__(self, model: nn.Module, facts: BackboneFacts) -> None:
        """Raises UserError for families whose layers do not stand in one list."""
        try:
            self._layers = list(layers_of(model)[1])
        except ValueError:
            self._layers = []
        if len(self._layers) != facts.layers:
            raise _refusal(facts, "its layers do not stand in one list, each of them once")
        self._facts = facts

    @contextmanager
    def edited(self, edits: Edits, mask: Tensor) -> Iterator[None]:
        """The one call made inside is edited; `mask` [B, S]: of its tokens. UserError where states have other sizes."""
        with ExitStack() as hooks:
            for site, edit in edits.before.items():
                run = partial(self._edit, edit, mask)
                if site < len(self._layers):
                    handle = self._layers[site].register_forward_pre_hook(
                        partial(exchange_states, run), with_kwargs=True
                    )
                else:
                    handle = self._layers[-1].register_forward_hook(partial(_behind, run))
                hooks.callback(handle.remove)
            yield

    def _edit(self, edit: nn.Module, mask: Tensor, hidden: Tensor) -> Tensor:
        if hidden.shape != (*mask.shape, self._facts.hidden_size):
            raise _refusal(self._facts, "the states between its layers have other sizes than those that it gives")
        edited: Tensor = edit(hidden, mask)
        return edited.to(hidden.dtype)


def _behind(run: Any, _: nn.Module, __: Any, output: Any) -> Any:
    """A hook of a layer, which gives its states alone or first in a tuple."""
    return (run(output[0]), *output[1:]) if isinstance(output, tuple) else run(output)


def _refusal(facts: BackboneFacts, reason: str) -> UserError:
    return UserError(
        f"the states inside {facts.family} cannot be edited ({reason}): take a method that injects a prompt or nothing "
        "(prompt, lt_prompt, lora, probe)"
    )
