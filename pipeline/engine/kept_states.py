"""The states of texts that a run keeps: which they are, what they were made from, and splits that have them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.config import BackboneConfig, Pooling
from pipeline.backbone.facts import Form
from pipeline.backbone.pooling import resolve_pooling
from pipeline.backbone.text_reader import keeps_tokens, token_width
from pipeline.core.artefact import FORMAT, Artefact, defaults_of, differences
from pipeline.core.checksums import check_sums
from pipeline.core.run_dir import RunDir
from pipeline.data.splits import Split
from pipeline.data.text_states import StatesOfSplit, load_text_states, load_token_states, read_states_file
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.methods.base import MethodConfig, Reading, Readings

TEXTS_FORMAT = "1"
"""Of texts/: raised when the same parts of its fingerprint come to mean other states."""
ABSENT = defaults_of(backbone=BackboneConfig)
"""What the lack of a part of its fingerprint stands for."""


def texts_artefact(folder: Path) -> Artefact:
    """texts/"""
    return Artefact(folder, "encode-texts", ABSENT)


def kept_form(method: MethodConfig, keep_token_states: bool) -> Form | None:
    """The form of the injections before which a run keeps token states; None where it keeps none."""
    return method.form if keep_token_states and keeps_tokens(method.form) else None


@dataclass(frozen=True)
class WantedStates:
    """A set of states to keep."""

    split: Split
    form: Form | None
    """Token states, before injections of this form; None: text states."""
    fingerprint: dict[str, str]
    width: int
    """M, or W of token states."""
    dtype: torch.dtype

    def are(self, found: StatesOfSplit | None) -> bool:
        """Whether these were found, whole or in part."""
        return found is not None and not differences(found.fingerprint, self.fingerprint, ABSENT)

    def are_whole(self, found: StatesOfSplit | None) -> bool:
        """Whether all of these were found."""
        return found is not None and found.complete and self.are(found)

    @property
    def count(self) -> int:
        """Texts, or tokens."""
        return len(self.split) if self.form is None else int(self.split.lengths.sum())

    @property
    def largest(self) -> int:
        """Bytes of the states of the longest text."""
        return self.width * self.dtype.itemsize * (1 if self.form is None else int(self.split.lengths.max()))


def wanted_states(
    backbone: Backbone, ranks: Ranks, splits: Mapping[str, Split], form: Form | None, *, pooled: bool
) -> dict[str, WantedStates]:
    """By name. Token states, before injections of this form, are kept of the texts that are read more than once."""
    if not pooled and form is None:
        return {}
    dtype, facts, wanted = backbone.config.torch_dtype, backbone.facts, {}
    if form is not None:
        form.width(facts)  # or raises UserError: there is no such layer
    for name, split in splits.items():
        fingerprint = states_fingerprint(backbone, ranks, split)
        if pooled:
            own = fingerprint | {"backbone.pooling": reading_pooling(backbone)}
            wanted[name] = WantedStates(split, None, own, facts.pooled_width, dtype)
        if form is not None and name != "test":
            wanted[_name(name, form)] = WantedStates(split, form, fingerprint, token_width(form, facts), dtype)
    return wanted


def _name(split: str, form: Form) -> str:
    return f"{split}-tokens-{'behind' if form.is_behind else f'from-{form.first_layer}'}"


def reading_pooling(backbone: Backbone) -> Pooling:
    return resolve_pooling(backbone.config.pooling, backbone.facts)


def states_fingerprint(backbone: Backbone, ranks: Ranks, split: Split) -> dict[str, str]:
    """Everything a split's states depend on, but for their pooling, part by part: its tokens, and what reads them.

    Collective.
    """
    return {
        FORMAT: TEXTS_FORMAT,
        **backbone.fingerprint(ranks),
        "backbone.int8_threshold": str(backbone.config.int8_threshold),
        "tokens": split.digest(),
    }


def with_states(
    run: RunDir,
    backbone: Backbone,
    ranks: Ranks,
    splits: Mapping[str, Split],
    form: Form | None = None,
    *,
    pooled: bool = True,
) -> dict[str, Split]:
    """Splits by name, with the states of their texts (`pooled`), and of their tokens before injections of `form`.

    Collective. Raises UserError where states are missing, or were made from something else.
    """
    wanted = wanted_states(backbone, ranks, splits, form, pooled=pooled)

    def check() -> None:
        check_sums(run.texts)
        found = read_states_file(run.texts)
        for name in wanted.keys() & found.keys():
            texts_artefact(run.texts).check(found[name].fingerprint, wanted[name].fingerprint)

    def with_own(name: str, split: Split) -> Split:
        if name in wanted:
            split = replace(split, states=load_text_states(run.texts, name))
        if form is not None and (tokens := _name(name, form)) in wanted:
            split = replace(split, token_states=load_token_states(run.texts, tokens, split.lengths))
        return split

    if not wanted:
        return dict(splits)
    ranks.on_main(check)
    return ranks.on_every(lambda: {name: with_own(name, split) for name, split in splits.items()})


def readings_of(splits: Mapping[str, Split], labels: LabelStates) -> Readings:
    """The texts as the backbone has read them alone, of splits with states."""

    def reading(split: Split) -> Reading:
        assert split.states is not None
        targets = None
        if split.targets is not None:
            targets = torch.from_numpy(split.targets.shares * split.targets.fitted_weights[:, None])
        return Reading(split.states.whole(), split.labels, targets)

    validation = splits.get("validation")
    others = None if validation is None else reading(validation)
    return Readings(reading(splits["train"]), others, labels.states.float(), labels.mask, labels.mean)
