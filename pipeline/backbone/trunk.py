"""The layers below an injection, run once per text, and those from there on, run once per label.

Both are the model's own forward, so that embeddings, masks, positions and rotary tensors are made as its family makes
them; only the layers that are not wanted hand on what they get.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.core.errors import UserError


class Trunk(NamedTuple):
    """Texts as far as the layers below `first_layer` have read them."""

    first_layer: int
    """The layer that reads on, from 0."""
    states: Tensor
    """[B, T, H], what that layer gets."""

    def repeat(self, copies: int) -> "Trunk":
        """Each text `copies` times in a row."""
        return Trunk(self.first_layer, self.states.repeat_interleave(copies, 0))


class LayerList(NamedTuple):
    """The transformer layers of a model, and the module that holds them."""

    owner: nn.Module
    layers: nn.ModuleList


def layers_of(model: nn.Module) -> LayerList | None:
    """None: they do not stand in one list, each of them once (ALBERT runs one layer again and again)."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # late: two seconds, which no config needs

    config: Any = model.config
    found = [
        LayerList(owner, child)
        for owner in model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) and isinstance(child[0], GradientCheckpointingLayer)
    ]
    return found[0] if [len(each.layers) for each in found] == [config.num_hidden_layers] else None


@dataclass
class End:
    """What a call of the model, on one text, shows of its end."""

    behind: list[str] = field(default_factory=list)
    """What runs behind the last layer, in this order, by its name beside the list of layers."""
    gives_tuples: bool = False
    """Layers give tuples, in which their states come first."""

    def of_layer(self, _: nn.Module, __: Any, output: Any) -> None:
        """A hook of the last layer."""
        self.behind, self.gives_tuples = [], isinstance(output, tuple)

    def of_other(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        """A hook of a module beside the layers. A pooler, of which there are some, gives no state per token."""
        if isinstance(output, Tensor) and output.ndim == 3:
            self.behind.append(name)


def end_of(model: nn.Module) -> End:
    """Filled when the model, which is not used any more then, is called; not where layers do not stand in one list."""
    end, found = End(), layers_of(model)
    if found is not None:
        found.layers[-1].register_forward_hook(end.of_layer)
        for name, module in found.owner.named_children():
            module.register_forward_hook(partial(end.of_other, name))
    return end


def check_split(config: Any) -> None:
    """Raises UserError for models whose upper layers cannot be entered: with states [B, T, H], and nothing else."""
    reason = ""
    if getattr(config, "num_kv_shared_layers", 0):  # Gemma 3n
        reason = "its layers use the keys and values of layers below them"
    elif hasattr(config, "relative_attention_num_buckets") and config.model_type != "umt5":  # T5, MPNet
        reason = "its first layer alone knows what distances mean, and tells the others"
    elif getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:  # OPT-350m
        reason = "the states between its layers are wider than those that it takes and gives"
    if reason:
        raise _refusal(config, reason)


def _refusal(config: Any, reason: str) -> UserError:
    return UserError(f"method.first_layer: {config.model_type} cannot be split ({reason}): set method.first_layer=0")


def exchange_states(exchanged: Callable[[Tensor], Tensor], _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A pre-hook of a layer, whose states come first or by name: it gets what `exchanged` makes of them."""
    if args:
        return (exchanged(args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": exchanged(kwargs["hidden_states"])}


class Split:
    """Wraps every layer of a model in place; `lower` and `upper` then say which of them one forward call runs.

    What edits a layer's states (`pipeline.backbone.sites`) hooks it later, and so gets those that are put in here.
    """

    def __init__(self, model: nn.Module, *, gives_tuples: bool) -> None:
        """`gives_tuples`: see `Probe`. Raises UserError for families that cannot be split."""
        check_split(model.config)
        found = layers_of(model)
        if found is None:
            raise _refusal(model.config, "its layers do not stand in one list, each of them once")
        self._first_layer = 0
        self._runs_lower = self._runs_upper = True
        self._states: Tensor | None = None
        """What layer `first_layer` got from those below, or gets in the place of that."""
        self._gives_tuples = gives_tuples
        for index, layer in enumerate(found.layers):
            enter = partial(exchange_states, partial(self._enter, index))
            layer.register_forward_pre_hook(enter, with_kwargs=True)
            layer.forward = partial(self._forward, index, layer.forward)

    @contextmanager
    def lower(self, first_layer: int) -> Iterator[list[Tensor]]:
        """The calls made inside run the layers below `first_layer`, and add what it would get to the list."""
        self._first_layer, self._runs_upper = first_layer, False
        found: list[Tensor] = []
        try:
            yield found
            assert self._states is not None
            found.append(self._states)
        finally:
            self._runs_upper, self._states = True, None

    @contextmanager
    def upper(self, first_layer: int, states: Tensor) -> Iterator[None]:
        """The calls made inside run the layers from `first_layer` on, which gets `states` [B, T, H]."""
        self._first_layer, self._runs_lower, self._states = first_layer, False, states
        try:
            yield
        finally:
            self._runs_lower, self._states = True, None

    def _enter(self, index: int, hidden: Tensor) -> Tensor:
        if index == self._first_layer and not self._runs_upper:
            self._states = hidden
        if index == self._first_layer and not self._runs_lower:
            assert self._states is not None
            return self._states
        return hidden

    def _forward(self, index: int, run: Any, *args: Any, **kwargs: Any) -> Any:
        if self._runs_lower if index < self._first_layer else self._runs_upper:
            return run(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if self._gives_tuples else hidden
