"""Stage 3: the frozen backbone reads texts once, alone; whatever needs that reading takes it from what is kept here."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.backbone.text_reader import TextReader
from pipeline.config import RunConfig
from pipeline.core.checksums import SUMS, write_sums
from pipeline.core.errors import UserError
from pipeline.core.files import link_or_copy
from pipeline.core.progress import Counted, counted
from pipeline.data.batches import Ints, longest_first
from pipeline.data.config import UNLABELLED
from pipeline.data.splits import load_split
from pipeline.data.text_states import (
    StatesOfSplit,
    check_finite,
    chunk_file,
    read_states_file,
    write_chunk,
    write_states_file,
)
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.kept_states import WantedStates, kept_form, reading_pooling, texts_artefact, wanted_states
from pipeline.engine.models import load_frozen, prepare_inference, release
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start

log = logging.getLogger(__name__)

CHUNK_ROWS = 4096
"""Rows of a file: what is read again, at most, after an interruption."""
CHUNK_BYTES = 2**28
"""And of one file's states, at most, where a text's do not take more: they are in memory until they are written."""


def encode_texts(config: RunConfig, backbone: Backbone | None = None, others: Sequence[Path] = ()) -> None:
    """Makes texts/ in the run directory, or what is missing of it; nothing where the method does not start from it.

    Test texts are read where evaluate.splits has them, and the method scores by stored states. Every rank must call it.
    `backbone`: the command's; None: one of its own. `others`: folders of other runs, whose states are taken where they
    are those of the same texts. Raises UserError where data/ is not current, where the states would take more than
    `engine.states_gib`, and where they are not finite.
    """
    form = kept_form(config.method, config.train.keep_token_states)
    if config.train.keep_token_states and form is None:
        log.info("train.keep_token_states: no layer reads the tokens before what %s injects", config.method.name)
    if not config.method.wants_states and form is None:
        log.info("encode-texts: method %s does not start from texts that are read alone", config.method.name)
        return
    accelerator, ranks = start(config)
    backbone, run, seed = backbone or backbone_of(config.backbone, config.data), config.run_dir, config.run.seed
    manifest = ranks.on_main(lambda: current_data(run, config.data, config.labels, seed, backbone))
    is_scored = config.method.reads_stored and "test" in config.evaluate.splits
    left_out = {UNLABELLED: not config.train.self_training, "test": not is_scored}
    splits = {name: load_split(run.data / name) for name in manifest["splits"] if not left_out.get(name)}
    wanted = wanted_states(backbone, ranks, splits, form, pooled=config.method.wants_states)
    found = ranks.on_main(lambda: _own(run.texts, wanted, others))
    planned = {name: _planned(found.get(name), states, ranks.size) for name, states in wanted.items()}
    plans = {name: plan for name, plan in planned.items() if not plan.complete}
    if not plans:
        log.info("encode-texts: %s is current", run.texts)
        return
    ranks.on_main(lambda: _announce(plans, wanted, config.engine.states_gib))
    reader = TextReader(load_frozen(accelerator, ranks, backbone), reading_pooling(backbone))
    model = prepare_inference(accelerator, reader, config.backbone.torch_dtype)
    reading = _Reading(accelerator, ranks, model, backbone, config.evaluate.batch_size)
    for name, plan in plans.items():
        todo = ranks.on_main(partial(_begin, run.texts, name, plan, found))
        reader.form = wanted[name].form
        reading.read(run.texts, name, wanted[name], plan, todo)
        found[name] = plan.model_copy(update={"complete": True})
        ranks.on_main(partial(write_states_file, run.texts, found))
    release(accelerator, model)
    ranks.on_main(lambda: write_sums(run.texts))
    log.info("encode-texts: states of the %s texts, in %s", ", ".join(plans), run.texts)


@dataclass(frozen=True)
class _Reading:
    """How texts are read: by the frozen backbone, on all ranks."""

    accelerator: Accelerator
    ranks: Ranks
    model: nn.Module
    backbone: Backbone
    batch_size: int

    def read(self, folder: Path, name: str, wanted: WantedStates, plan: StatesOfSplit, todo: list[int]) -> None:
        """Writes the chunks `todo` of a split, each rank its own. All run the same number of forwards, for ZeRO-3."""
        batch_size = min(self.batch_size, max(1, CHUNK_BYTES // wanted.largest))
        forwards = -(-plan.chunk_rows // batch_size)
        turns = self.ranks.turns(todo)
        what, batches = f"encode-texts: {name}", len(turns) * forwards
        with counted(log, what, batches, shown=self.ranks.is_main) as work:
            for chunk, is_own in turns:
                rows = plan.rows_of(chunk)
                cuts = longest_first(wanted.split.lengths[rows.start : rows.stop], batch_size)
                cuts += cuts[-1:] * (forwards - len(cuts))
                states = self._states(wanted, rows, cuts, work)
                if is_own:
                    self.ranks.on_every(lambda: write_chunk(folder, name, chunk, states))  # noqa: B023 (called at once)
                else:
                    self.ranks.on_every(lambda: None)

    def _states(self, wanted: WantedStates, rows: range, batches: list[Ints], work: Counted) -> Tensor:
        """States [rows, M], or [tokens, W], read in batches of texts of like length."""
        lengths = wanted.split.lengths[rows.start : rows.stop]
        if wanted.form is None:
            lengths = np.ones_like(lengths)
        ends = np.cumsum(lengths)
        states = torch.zeros(int(ends[-1]), wanted.width, dtype=wanted.dtype)
        with torch.no_grad():
            for batch in batches:
                inputs = wanted.split.batch(rows.start + batch, self.backbone.pad_token_id)
                found = self.model(**{key: value.to(self.accelerator.device) for key, value in inputs.items()})
                for row, read in zip(batch.tolist(), found.cpu(), strict=True):
                    states[ends[row] - lengths[row] : ends[row]] = read[: lengths[row]] if wanted.form else read
                work.update()
        check_finite(states)
        return states


def _found(folder: Path) -> dict[str, StatesOfSplit]:
    """What is there and whole; nothing, with a warning, where it is damaged."""
    return texts_artefact(folder).found(lambda: read_states_file(folder)) or {}


def _own(folder: Path, wanted: dict[str, WantedStates], others: Sequence[Path]) -> dict[str, StatesOfSplit]:
    """What is there, and what could be linked in from other folders, as this run's own if anything is missing.

    A link then counts as one of the others: what it names is read by other runs, and may be gone.
    """
    found = _found(folder)
    if folder.is_symlink() and not all(states.are_whole(found.get(name)) for name, states in wanted.items()):
        found, others = {}, [folder.resolve(), *others]
    return _taken(folder, found, wanted, others)


def _taken(
    folder: Path, found: dict[str, StatesOfSplit], wanted: dict[str, WantedStates], others: Sequence[Path]
) -> dict[str, StatesOfSplit]:
    """What is there, and what could be linked in from other folders."""
    for name, states in wanted.items():
        if states.are_whole(found.get(name)):
            continue
        for other in others:
            there = _found(other).get(name) if other != folder else None
            if there is not None and states.are_whole(there):
                _begin(folder, name, there, found)
                for chunk in range(there.chunks):
                    link_or_copy(chunk_file(other, name, chunk), chunk_file(folder, name, chunk))
                found = found | {name: there}
                write_states_file(folder, found)
                write_sums(folder)
                break
    return found


def _planned(found: StatesOfSplit | None, wanted: WantedStates, world_size: int) -> StatesOfSplit:
    """What is there already, whole or in part, or else what is to be made."""
    if found is not None and wanted.are(found):
        return found
    rows = len(wanted.split)
    chunk_rows = min(CHUNK_ROWS, max(1, CHUNK_BYTES // wanted.largest), -(-rows // world_size))
    return StatesOfSplit(rows=rows, chunk_rows=chunk_rows, fingerprint=wanted.fingerprint, complete=False)


def _announce(plans: dict[str, StatesOfSplit], wanted: dict[str, WantedStates], most_gib: float) -> None:
    """Says how much will be written. UserError where that is too much."""
    size = sum(wanted[name].count * wanted[name].width * wanted[name].dtype.itemsize for name in plans)
    texts = sum(plan.rows for plan in plans.values())
    if size > most_gib * 2**30:
        raise UserError(
            f"the states of {texts:,} texts take {size / 2**30:.3g} GiB, at most {most_gib:g} are written: raise "
            "engine.states_gib, or take fewer texts (data.train_limit, data.test_limit)"
        )
    log.info("encode-texts: reading %s texts once, %.3g MB of states", f"{texts:,}", size / 1e6)


def _begin(folder: Path, name: str, plan: StatesOfSplit, found: dict[str, StatesOfSplit]) -> list[int]:
    """Makes room for a split's states, and says which chunks to make: those of an interrupted run stay."""
    if folder.is_symlink():
        folder.unlink()  # what it names is another run's
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    if found.get(name) != plan:
        for file in folder.glob(f"{name}-[0-9]*.safetensors"):
            file.unlink()
    write_states_file(folder, found | {name: plan})
    return [chunk for chunk in range(plan.chunks) if not chunk_file(folder, name, chunk).is_file()]
