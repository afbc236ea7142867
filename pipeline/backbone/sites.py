"""Where trained modules edit a text's states on their way through the frozen layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
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


class EditByRows(nn.Module):
    """Edits some rows by one module, the next by another."""

    def __init__(self, counts: Sequence[int], edits: Sequence[nn.Module | None]) -> None:
        """`counts`: of the rows of each; None leaves them as they are."""
        super().__init__()
        self._counts, self._edits = list(counts), tuple(edits)  # a tuple: they are others' modules

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, S, H], mask [B, S] -> [B, S, H]"""
        parts = zip(hidden.split(self._counts), mask.split(self._counts), self._edits, strict=True)
        return torch.cat([rows if edit is None else edit(rows, seen).to(rows.dtype) for rows, seen, edit in parts])


def edits_by_rows(parts: Sequence[tuple[int, Edits | None]]) -> Edits | None:
    """The edits of a batch made of parts: how many rows each has, and its own edits."""
    counts, given = [count for count, _ in parts], [edits or Edits() for _, edits in parts]
    embeddings = [edits.embeddings for edits in given]
    before = {
        site: EditByRows(counts, [edits.before.get(site) for edits in given])
        for site in sorted({site for edits in given for site in edits.before})
    }
    is_embedded = any(edit is not None for edit in embeddings)
    if not before and not is_embedded:
        return None
    return Edits(EditByRows(counts, embeddings) if is_embedded else None, before)


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
        found = layers_of(model)
        if found is None:
            raise _refusal(facts, "its layers do not stand in one list, each of them once")
        self._layers, self._facts = list(found.layers), facts

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
