"""The frozen backbone reads each text once, alone; whatever needs that reading takes it from what is kept here."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.pooling import pool, resolve_pooling
from pipeline.config import RunConfig
from pipeline.core.artefact import FORMAT, Artefact, defaults_of, differences
from pipeline.core.checksums import SUMS, check_sums, write_sums
from pipeline.core.errors import UserError
from pipeline.core.files import link_or_copy
from pipeline.core.progress import Counted, counted
from pipeline.core.run_dir import RunDir
from pipeline.data.batches import longest_first
from pipeline.data.splits import Split, load_split
from pipeline.data.text_states import (
    StatesOfSplit,
    check_finite,
    chunk_file,
    load_text_states,
    read_states_file,
    write_chunk,
    write_states_file,
)
from pipeline.data.tokenizer import pad_token_id
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.models import DTYPES, load_frozen, prepare_inference, release
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start

log = logging.getLogger(__name__)

TEXTS_FORMAT = "1"
"""Of texts/: raised when the same parts of its fingerprint come to mean other states."""
ABSENT = defaults_of(backbone=BackboneConfig)
"""What the lack of a part of its fingerprint stands for."""
CHUNK_ROWS = 4096
"""Rows of a file: what is read again, at most, after an interruption."""


def encode_texts(config: RunConfig, backbone: Backbone | None = None, others: Sequence[Path] = ()) -> None:
    """Makes texts/ in the run directory, or what is missing of it; nothing where the method does not start from it.

    Every rank must call it. `backbone`: the command's; None: one of its own. `others`: folders of other runs, whose
    states are taken where they are those of the same texts. Raises UserError where data/ is not current, where the
    states would take more than `engine.states_gib`, and where they are not finite.
    """
    if not config.method.wants_states:
        log.info("encode-texts: method %s does not start from texts that are read alone", config.method.name)
        return
    accelerator, ranks = start(config)
    backbone, run, seed = backbone or backbone_of(config.backbone, config.data), config.run_dir, config.run.seed
    manifest = ranks.on_main(lambda: current_data(run, config.data, config.labels, seed, backbone))
    splits = {name: load_split(run.data / name) for name in manifest["splits"]}
    wanted = {name: states_fingerprint(backbone, ranks, split) for name, split in splits.items()}
    found = ranks.on_main(lambda: _taken(run.texts, _found(run.texts), wanted, others))
    plans = {}
    for name, split in splits.items():
        plan = _planned(found.get(name), wanted[name], len(split), ranks.size)
        if not plan.complete:
            plans[name] = plan
    if not plans:
        log.info("encode-texts: %s is current", run.texts)
        return
    ranks.on_main(lambda: _announce(plans, backbone, config.engine.states_gib))
    model = prepare_inference(accelerator, load_frozen(accelerator, ranks, backbone), config.backbone.dtype)
    reading = _Reading(accelerator, ranks, model, backbone, config.evaluate.batch_size)
    for name, plan in plans.items():
        todo = ranks.on_main(partial(_begin, run.texts, name, plan, found))
        reading.read(run.texts, name, splits[name], plan, todo)
        found[name] = plan.model_copy(update={"complete": True})
        ranks.on_main(partial(write_states_file, run.texts, found))
    release(accelerator, model)
    ranks.on_main(lambda: write_sums(run.texts))
    log.info("encode-texts: states of the %s texts, in %s", ", ".join(plans), run.texts)


def states_fingerprint(backbone: Backbone, ranks: Ranks, split: Split) -> dict[str, str]:
    """Everything a split's text states depend on, part by part: its tokens, and how they are read. Collective."""
    config = backbone.config
    return {
        FORMAT: TEXTS_FORMAT,
        **backbone.fingerprint(ranks),
        "backbone.int8_threshold": str(config.int8_threshold),
        "backbone.pooling": resolve_pooling(config.pooling, backbone.facts),
        "tokens": split.digest(),
    }


def with_states(run: RunDir, backbone: Backbone, ranks: Ranks, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Splits by name, with the states of their texts. Collective.

    Raises UserError where states are missing, or were made from something else.
    """

    def check() -> None:
        check_sums(run.texts)
        found = read_states_file(run.texts)
        for name in wanted.keys() & found.keys():
            _artefact(run.texts).check(found[name].fingerprint, wanted[name])

    wanted = {name: states_fingerprint(backbone, ranks, split) for name, split in splits.items()}
    ranks.on_main(check)
    states = ranks.on_every(lambda: {name: load_text_states(run.texts, name) for name in splits})
    return {name: replace(split, states=states[name]) for name, split in splits.items()}


@dataclass(frozen=True)
class _Reading:
    """How texts are read: by the frozen backbone, on all ranks."""

    accelerator: Accelerator
    ranks: Ranks
    model: nn.Module
    backbone: Backbone
    batch_size: int

    def read(self, folder: Path, name: str, split: Split, plan: StatesOfSplit, todo: list[int]) -> None:
        """Writes the chunks `todo` of a split, each rank its own. All run the same number of forwards, for ZeRO-3."""
        forwards = -(-plan.chunk_rows // self.batch_size)
        turns = range(0, len(todo), self.ranks.size)
        what, batches = f"encode-texts: {name}", len(turns) * forwards
        with counted(log, what, batches, shown=self.ranks.is_main) as work:
            for first in turns:
                # A rank without a chunk of its own reads the last one, and drops the result.
                chunk = todo[min(first + self.ranks.rank, len(todo) - 1)]
                states = self._states(split, plan.rows_of(chunk), forwards, work)
                if first + self.ranks.rank < len(todo):
                    self.ranks.on_every(lambda: write_chunk(folder, name, chunk, states))  # noqa: B023 (called at once)
                else:
                    self.ranks.on_every(lambda: None)

    def _states(self, split: Split, rows: range, forwards: int, work: Counted) -> Tensor:
        """States [rows, H], read in batches of texts of like length."""
        facts = self.backbone.facts
        pooling = resolve_pooling(self.backbone.config.pooling, facts)
        pad_token, device = pad_token_id(self.backbone.tokenizer, facts.vocab_size), self.accelerator.device
        states = torch.zeros(len(rows), facts.hidden_size, dtype=DTYPES[self.backbone.config.dtype])
        batches = longest_first(split.lengths[rows.start : rows.stop], self.batch_size)
        with torch.no_grad():
            for number in range(forwards):
                batch = batches[min(number, len(batches) - 1)]
                inputs = split.batch(rows.start + batch, pad_token)
                inputs = {key: value.to(device) for key, value in inputs.items()}
                pooled = pool(self.model(**inputs), inputs["attention_mask"], pooling)
                states[torch.from_numpy(batch)] = pooled.to(states)
                work.update()
        check_finite(states)
        return states


def _artefact(folder: Path) -> Artefact:
    return Artefact(folder, "encode-texts", ABSENT)


def _found(folder: Path) -> dict[str, StatesOfSplit]:
    """What is there and whole; nothing, with a warning, where it is damaged."""
    return _artefact(folder).found(lambda: read_states_file(folder)) or {}


def _taken(
    folder: Path, found: dict[str, StatesOfSplit], wanted: dict[str, dict[str, str]], others: Sequence[Path]
) -> dict[str, StatesOfSplit]:
    """What is there, and what could be linked in from other folders."""
    for name, parts in wanted.items():
        if (own := found.get(name)) is not None and own.complete and not differences(own.fingerprint, parts, ABSENT):
            continue
        for other in others:
            there = _found(other).get(name) if other != folder else None
            if there is not None and there.complete and not differences(there.fingerprint, parts, ABSENT):
                _begin(folder, name, there, found)
                for chunk in range(there.chunks):
                    link_or_copy(chunk_file(other, name, chunk), chunk_file(folder, name, chunk))
                found = found | {name: there}
                write_states_file(folder, found)
                write_sums(folder)
                break
    return found


def _planned(found: StatesOfSplit | None, wanted: dict[str, str], rows: int, world_size: int) -> StatesOfSplit:
    """What is there already, whole or in part, or else what is to be made."""
    if found is not None and not differences(found.fingerprint, wanted, ABSENT):
        return found
    chunk_rows = min(CHUNK_ROWS, -(-rows // world_size))
    return StatesOfSplit(rows=rows, chunk_rows=chunk_rows, fingerprint=wanted, complete=False)


def _announce(plans: dict[str, StatesOfSplit], backbone: Backbone, most_gib: float) -> None:
    """Says how much will be written. UserError where that is too much."""
    texts = sum(plan.rows for plan in plans.values())
    size = texts * backbone.facts.hidden_size * DTYPES[backbone.config.dtype].itemsize
    if size > most_gib * 2**30:
        raise UserError(
            f"the states of {texts:,} texts take {size / 2**30:.3g} GiB, at most {most_gib:g} are written: raise "
            "engine.states_gib, or take fewer texts (data.train_limit, data.test_limit)"
        )
    log.info("encode-texts: reading %s texts once, %.3g MB of states", f"{texts:,}", size / 1e6)


def _begin(folder: Path, name: str, plan: StatesOfSplit, found: dict[str, StatesOfSplit]) -> list[int]:
    """Makes room for a split's states, and says which chunks to make: those of an interrupted run stay."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    if found.get(name) != plan:
        for file in folder.glob(f"{name}-*.safetensors"):
            file.unlink()
    write_states_file(folder, found | {name: plan})
    return [chunk for chunk in range(plan.chunks) if not chunk_file(folder, name, chunk).is_file()]
