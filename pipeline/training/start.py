"""Training that starts from what another run has trained: its injection is copied, the head is new.

The idea of PPT (pre-trained prompt tuning, arXiv 2109.04332) without its own pre-training: another task of the user's
takes its place.
"""

import logging
from collections.abc import Mapping

from torch import Tensor

from pipeline.adapter.directory import Adapter, adapter_fingerprint, adapter_folder, load_adapter
from pipeline.core.errors import UserError
from pipeline.core.run_dir import RunDir
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.methods import AnyMethodConfig, TuningMethod

log = logging.getLogger(__name__)

START_PART = "train.start_from: adapter"
"""The part of a training's fingerprint that says what it started from, by content; absent: nothing, or it is gone."""
HEAD = "head."
OWN = {"head", "judge", "shortlist", "dropout", "init", "init_text", "init_std"}
"""Keys of a method that may differ: of the head and of the training, not of what is copied."""


def start_fingerprint(path: str | None) -> dict[str, str]:
    """What training starts from, where it is still there: when it is over, what it started from may go."""
    if path is None:
        return {}
    try:
        return {START_PART: adapter_fingerprint(adapter_folder(path))}
    except (UserError, OSError) as error:
        log.warning("train.start_from: %s; whether it is what training started from is not compared", error)
        return {}


def check_start(path: str | None, config: AnyMethodConfig, run: RunDir, *, overwrite: bool = False) -> None:
    """Raises UserError where training cannot start from that adapter, as far as is known before labels are read.

    What has begun goes on without it, where it does not `overwrite`.
    """
    if path is not None and (overwrite or not run.is_trained):
        _load(path, config)


def start_values(
    path: str, config: AnyMethodConfig, method: TuningMethod, backbone: Backbone, ranks: Ranks
) -> dict[str, Tensor]:
    """The other adapter's trained tensors without its head, by name. Collective.

    Raises UserError where it is damaged, of another method or backbone, or of other sizes.
    """
    other = _load(path, config)
    try:
        other.check_backbone(backbone.opened(ranks).fingerprint, backbone.tokenizer_fingerprint)
        own = {name: tensor for name, tensor in method.named_parameters() if not name.startswith(HEAD)}
        _check_sizes(other, own)
    except UserError as error:
        raise UserError(f"train.start_from: {error}") from error
    log.info("train: starts from %d tensors of '%s', with a new head", len(own), path)
    return {name: other.method_state[name] for name in own}


def _load(path: str, config: AnyMethodConfig) -> Adapter:
    try:
        other = load_adapter(adapter_folder(path))
        _check_method(other, config)
    except UserError as error:
        raise UserError(f"train.start_from: {error}") from error
    return other


def _check_method(other: Adapter, config: AnyMethodConfig) -> None:
    theirs = other.config.method
    if theirs.name != config.name:
        raise UserError(f"the adapter is of method {theirs.name}, this run of {config.name}: take one of {config.name}")
    if config.injects is None:
        raise UserError(
            f"method {config.name} has no prompt, prefix or producer that could be copied: take prompt, prefix, "
            "p_tuning, decomposed, generated, lt_prompt or lt_prefix, or leave it out"
        )
    there, here = theirs.model_dump(), config.model_dump()
    for key in here.keys() - OWN:
        if there[key] != here[key]:
            raise UserError(f"it was trained with method.{key}={there[key]}, here {here[key]}: set it as there")


def _check_sizes(other: Adapter, own: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        there, here = other.method_state.get(name), list(tensor.shape)
        if there is None or list(there.shape) != here:
            found = "absent" if there is None else list(there.shape)
            raise UserError(
                f"'{name}' has the shape {found} there and {here} here: take labels whose longest hypothesis is as long"
            )
