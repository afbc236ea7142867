"""Says which layers' states, pooled how, a probe does best with: `backbone.layers` and `backbone.pooling`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbone.config import Pooling
from pipeline.backbone.every_layer import PARTS, EveryLayer
from pipeline.backbone.model_config import can_be_cut
from pipeline.backbone.pooling import resolve_pooling
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import remove, write_json, write_text
from pipeline.core.output import say
from pipeline.core.progress import counted
from pipeline.core.run_dir import RunDir
from pipeline.data.splits import Split, load_split
from pipeline.data.subsets import balanced_subset
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.layer_states import LayerReader, LayerStates, bytes_of_states
from pipeline.engine.models import load_frozen, prepare_inference, release
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start
from pipeline.methods import AnyMethodConfig
from pipeline.methods.base import Reading
from pipeline.methods.reading_choice import Probed, ReadingChoice, probe_reading, worth_joining
from pipeline.reports.page import as_file
from pipeline.reports.reading import picture, table, values
from pipeline.stages.preprocess import preprocess

log = logging.getLogger(__name__)

ALONE = [pooling for pooling, parts in PARTS.items() if len(parts) == 1]
"""Poolings that each layer is probed with; the others where layers are joined."""
TRAIN_TEXTS, VALIDATION_TEXTS = 2_000, 1_000
"""As many tell layers apart, and are read in minutes."""


def choose_reading(
    config: RunConfig, *, train_texts: int = TRAIN_TEXTS, validation_texts: int = VALIDATION_TEXTS
) -> ReadingChoice:
    """Reads some texts once with the whole backbone, probes its layers and poolings, and prints what does best.

    Each layer is probed by its mean, last and first state, then some layers joined. Makes data/ in the run directory
    where it is not current (but that of a training is kept), logs/reading.json and logs/reading.svg. Every rank must
    call it. Raises UserError where there are no validation texts, where the config asks for more layers than there are,
    and where states are not finite.
    """
    accelerator, ranks = start(config)
    facts = backbone_of(config.backbone, config.data).facts
    whole = backbone_of(config.backbone.model_copy(update={"layers": None}), config.data)
    now = (list(facts.joined) or facts.layers, resolve_pooling(config.backbone.pooling, facts))
    given = (config.run_dir, config.data, config.labels, config.run.seed, whole)
    lowest = _lowest(whole, config.method)
    single = list(product(range(lowest, whole.facts.layers + 1), ALONE))
    with _place(config.run_dir, partial(current_data, *given), ranks) as run:
        place = config.run.model_copy(update={"dir": str(run.path)})
        manifest = preprocess(config.model_copy(update={"run": place}), whole)
        if "validation" not in manifest["splits"]:
            raise UserError("choose-reading judges by validation texts: set data.validation, or data.split to cut some")
        train = _drawn(run, "train", train_texts, config.run.seed)
        valid = _drawn(run, "validation", validation_texts, config.run.seed)
        _announce(whole, len(train.rows), len(valid.rows), len(single))
        model = prepare_inference(
            accelerator, EveryLayer(load_frozen(accelerator, ranks, whole)), config.backbone.torch_dtype
        )
        reader = LayerReader(accelerator, ranks, model, whole, config.evaluate.batch_size)
        states = reader.read(train.split, train.rows, "train"), reader.read(valid.split, valid.rows, "validation")
        release(accelerator, model)
    fitted = partial(_probed, states, (train.labels, valid.labels), len(manifest["labels"]), ranks)
    probed = fitted(single)
    # Layers below those that an injection enters show nothing of it.
    first = 0 if config.method.form is None else config.method.form.first_layer
    joined = worth_joining(probed, whole.facts.layers)
    several = [kind for kind in joined if kind[0][0] >= first and kind[0][-1] >= lowest]
    probed += fitted(several if now in [*single, *several] else [*several, now])
    configured = next(one for one in probed if (one.layers, one.pooling) == now)
    choice = ReadingChoice(probed, whole.facts.layers, len(train.rows), len(valid.rows), configured)
    ranks.on_main(lambda: _tell(choice, config.run_dir))
    return choice


def _lowest(whole: Backbone, method: AnyMethodConfig) -> int:
    """The fewest layers that may be advised: a model of so many can be had, and takes what the method puts into it.

    1 where none takes that, which training refuses with its reason.
    """
    facts = whole.facts
    if not can_be_cut(whole.model_config):
        return facts.layers

    def is_enough(count: int) -> bool:
        cut = replace(facts, layers=count, prefix_layers=facts.prefix_layers[:count])
        # A prompt is read by any layer, a prefix only by attention.
        is_read = method.injects != "prefix" or any(cut.prefix_layers)
        return is_read and _passes(lambda: method.check_layers(cut))

    return next(filter(is_enough, range(1, facts.layers + 1)), 1)


@contextmanager
def _place(run: RunDir, current: Callable[[], Any], ranks: Ranks) -> Iterator[RunDir]:
    """Where data/ may be made: this run directory, or another, for the block alone, where it would replace what a
    training was given. Collective. `current` raises UserError where data/ is not current.
    """
    if ranks.on_main(lambda: not run.is_trained or _passes(current)):
        yield run
        return
    log.info("choose-reading: %s is what was trained on, and is kept: the texts are tokenized beside it", run.data)
    # Where all ranks see it, and by a name whose rest, after a kill, the next command takes away.
    aside = Path(ranks.on_main(lambda: mkdtemp(prefix=".ltune-data.", suffix=".tmp", dir=run.path)))
    try:
        yield RunDir(aside)
    finally:
        if ranks.is_main:
            remove(aside)


def _passes(check: Callable[[], Any]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class _Drawn:
    """Some rows of a split."""

    split: Split
    rows: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.split.labels[self.rows]


def _drawn(run: RunDir, name: str, most: int, seed: int) -> _Drawn:
    """At most so many rows, or one of each label; each label keeps its share."""
    split = load_split(run.data / name)
    count = max(most, len(np.unique(split.labels)))
    every = np.arange(len(split), dtype=np.int64)
    return _Drawn(split, every if count >= len(split) else balanced_subset(split.labels, count, seed))


def _announce(backbone: Backbone, train: int, validation: int, probes: int) -> None:
    log.info(
        "choose-reading: %s training and %s validation texts are read once with all %d layers (%.3g MB of states), "
        "then %d probes fitted, and a few of layers joined",
        f"{train:,}",
        f"{validation:,}",
        backbone.facts.layers,
        bytes_of_states(backbone, train + validation) / 1e6,
        probes,
    )


def _probed(
    states: tuple[LayerStates, LayerStates],
    labels: tuple[NDArray[np.int64], NDArray[np.int64]],
    label_count: int,
    ranks: Ranks,
    kinds: Sequence[tuple[int | list[int], Pooling]],
) -> list[Probed]:
    """A probe of each of these layers and poolings, by the states and labels of training and validation texts.

    The ranks fit as many at a time as there are ranks.
    """
    found: list[Probed] = []
    turns = range(0, len(kinds), ranks.size)
    with counted(log, "choose-reading: fitting", len(turns), shown=ranks.is_main, parts="probes") as progress:
        for first in turns:
            work: Callable[[], Probed | None] = lambda: None  # noqa: E731
            for turn, kind in enumerate(kinds[first : first + ranks.size]):
                pairs = zip(states, labels, strict=True)
                train, validation = (Reading(each.of(*kind, ranks), of) for each, of in pairs)
                if turn == ranks.rank:
                    work = partial(probe_reading, *kind, train, validation, label_count)
            found += [one for one in ranks.gather(ranks.on_every(work)) if one is not None]
            progress.update()
    return found


def _tell(choice: ReadingChoice, run: RunDir) -> None:
    """Prints it, and keeps it beside its picture."""
    say(table(choice))
    run.logs.mkdir(exist_ok=True)
    write_json(run.reading_file, values(choice))
    write_text(run.reading_picture, as_file(picture(choice)))
    log.info("choose-reading: %s and %s", run.reading_picture, run.reading_file.name)
