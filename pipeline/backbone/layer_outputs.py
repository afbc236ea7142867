"""What the layers of a model leave, seen while it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pipeline.backbone.probe import probe
from pipeline.backbone.trunk import layers_of
from pipeline.core.errors import UserError


def check_layers_are_seen(model: nn.Module) -> None:
    """Raises UserError for families whose layers cannot be looked at one by one."""
    config: Any = model.config
    reason = ""
    if layers_of(model) is None:
        reason = "do not stand in one list, each of them once"
    elif getattr(config, "altup_num_inputs", 0):  # Gemma 3n
        reason = "hand on several states of each token"
    if reason:
        raise UserError(
            f"backbone.layers: those of {config.model_type} {reason}, so that only the last one's states can be read: "
            "set a number or null"
        )


@contextmanager
def seen(model: nn.Module, layers: Sequence[int], take: Callable[[Tensor], None]) -> Iterator[None]:
    """A call inside gives `take` what models of the first n layers would end with [B, S, H], for each n of `layers`.

    They are fewer than all, in ascending order, and the tokens in the order in which the layers run them. A model has
    the family's norm behind its last layer, so it is applied here. What a layer leaves is seen where the next one gets
    it: DeBERTa has a convolution between the first two, and edits (`pipeline.backbone.sites`) are made there.
    """
    found = layers_of(model)
    assert found is not None, "checked by check_layers_are_seen"
    config: Any = model.config
    behind = [getattr(found.owner, name) for name in probe(config).behind]

    def look(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        for module in behind:
            hidden = module(hidden)
        take(hidden)

    hooks = [found.layers[count].register_forward_pre_hook(look, with_kwargs=True) for count in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
