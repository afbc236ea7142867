"""Stage 1: labelled texts are read, checked and tokenised into the run directory's data/."""

import logging
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import PreTrainedTokenizerBase

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.model_config import load_model_config
from pipeline.config import RunConfig
from pipeline.core.artefact import differences
from pipeline.core.checksums import is_whole, write_sums
from pipeline.core.errors import UserError, some
from pipeline.core.files import atomic_dir, read_json, write_json
from pipeline.data.fingerprint import data_fingerprint, place_of, source_identity, sources_of
from pipeline.data.hypotheses import hypotheses
from pipeline.data.labels import Labels, doubt, known_labels, label_indices, label_name, look_alikes
from pipeline.data.sources import CheckedSplit, overlap, read_split
from pipeline.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from pipeline.data.tokens import (
    balanced_subset,
    column,
    rows_per_label,
    rows_with_special_tokens,
    special_token_rows,
    summary,
    tokenise,
    with_special_tokens,
)
from pipeline.distributed.launcher import world_size

log = logging.getLogger(__name__)
Result = TypeVar("Result")

VERSION = 2
"""Of the manifest. Before 2, ids were not always read by the names of their own file, nor names by `label_name`."""


def preprocess(config: RunConfig) -> dict[str, Any]:
    """Makes data/ in the run directory, or finds it current. Rank 0 does it; the others wait for it.

    Returns:
        The manifest: version, fingerprint, sources (name of each split's), labels (names in index order), splits (rows,
        tokens, longest, truncated, per_label of each), special_tokens (rows of each split that have some in a text),
        warnings, has_pair.

    Raises:
        UserError: everything that is wrong with the input; then nothing is written.
    """
    if world_size() == 1:
        return _preprocess(config)
    # Late: one process needs no DeepSpeed, which takes seconds to import.
    from pipeline.engine.startup import on_main_process, start

    return on_main_process(start(config), lambda: _preprocess(config))


def _preprocess(config: RunConfig) -> dict[str, Any]:
    run = config.run_dir
    run.create()
    tokenizer = load_tokenizer(config.backbone, special_tokens=config.data.special_tokens)
    _check_max_length(config.backbone, config.data.max_length)
    sources = sources_of(config.data)
    wanted = _fingerprint(config, sources, tokenizer)
    if run.manifest_file.is_file() and is_whole(run.data, "preprocess"):
        manifest = read_json(run.manifest_file)
        special = special_token_rows(manifest, run.data, tokenizer)
        changed = differences(manifest["fingerprint"], with_special_tokens(wanted, config.data, special))
        if not changed:
            if manifest["version"] < VERSION:
                manifest = _renewed(manifest, config, sources)
            log.info("preprocess: %s is current", run.data)
            return manifest
        log.info("preprocess: %s is stale (%s), made again", run.data, "; ".join(changed))
    with atomic_dir(run.data, sums=True) as folder, TemporaryDirectory(dir=folder) as scratch:
        built = _build(config, sources, tokenizer, folder, Path(scratch))
        manifest = {
            "version": VERSION,
            "fingerprint": with_special_tokens(wanted, config.data, built["special_tokens"]),
            "sources": {split: place_of(source) for split, source in sources.items()},
            **built,
        }
        if changed := differences(wanted, _fingerprint(config, sources, tokenizer)):
            raise UserError(f"preprocess: the texts changed while they were read ({'; '.join(changed)}): run it again")
        write_json(folder / run.manifest_file.name, manifest)
    _report(manifest)
    return manifest


def _build(
    config: RunConfig, sources: dict[str, str], tokenizer: PreTrainedTokenizerBase, folder: Path, scratch: Path
) -> dict[str, Any]:
    """Reads all splits, then tokenises them into `folder`; returns the manifest's part on what was found."""

    splits, labels, indices = _read(config, sources, scratch)
    names = labels.names
    hypotheses(names, config.labels)  # a wording that does not fit is said before the long work
    tokenised, special = {}, {}
    for split, read_rows in splits.items():
        rows = _kept(config, split, read_rows.rows, indices[split])
        file = scratch / f"{split}-tokens.arrow"
        result = tokenise(rows, tokenizer, indices[split], config.data.max_length, config.data.workers, file, split)
        _save_quietly(result, folder / split)
        tokenised[split] = summary(result, names)
        special[split] = rows_with_special_tokens(result, tokenizer)
    warnings = [
        *_label_warnings(labels, splits, tokenised),
        *_overlap_warnings(splits),
        *_cut_warnings(tokenised, config),
    ]
    return {
        "labels": names,
        "splits": tokenised,
        "special_tokens": special,
        "warnings": warnings,
        "has_pair": config.data.text_pair is not None,
    }


def _read(
    config: RunConfig, sources: dict[str, str], scratch: Path
) -> tuple[dict[str, CheckedSplit], Labels, dict[str, dict[str, int]]]:
    """The splits, the labels, and by split the index of each label as the split has it."""

    def read(split: str) -> CheckedSplit:
        return read_split(sources[split], split, config.data, scratch / f"{split}.arrow")

    splits = _each(sources, read)
    labels = known_labels(splits["train"].labels, config.labels.names)
    return splits, labels, _each(splits, lambda split: label_indices(split, splits[split].labels, labels))


def _renewed(manifest: dict[str, Any], config: RunConfig, sources: dict[str, str]) -> dict[str, Any]:
    """The manifest of an older version with today's, if every row has the label that it has today.

    Raises:
        UserError: a row has another one, or is refused today: what was trained and evaluated on it is wrong.
    """
    run = config.run_dir
    with TemporaryDirectory() as scratch:
        try:
            splits, labels, indices = _read(config, sources, Path(scratch))
        except UserError as fault:
            raise UserError(f"{fault} (an older version read this otherwise, and made '{run.data}' of it)") from fault
        old_names = np.array(list(map(label_name, manifest["labels"])), dtype=object)
        wrong = (
            [] if sorted(old_names) == sorted(labels.names) else [f"the labels were {', '.join(manifest['labels'])}"]
        )
        for split, found in splits.items():
            kept = Dataset.load_from_disk(str(run.data / split))
            rows, old = column(kept, "row"), old_names[column(kept, "label")]
            values = found.rows.data.column("label").to_pylist()
            new = np.array([labels.names[indices[split][values[row - 1]]] for row in rows], dtype=object)
            wrong += [f"{split} row {rows[n]} was {old[n]!r}, is {new[n]!r}" for n in np.flatnonzero(old != new)]
    if wrong:
        raise UserError(
            f"'{run.data}' was made by an older version that read labels wrongly: {some(wrong)}; so what was trained "
            f"and evaluated in '{run.path}' is wrong: choose another run.dir, or remove that folder"
        )
    manifest = manifest | {"version": VERSION}
    if not run.data.is_symlink():  # what is linked is another run's, which renews its own
        write_json(run.manifest_file, manifest)
        write_sums(run.data)
    return manifest


def _save_quietly(rows: Dataset, folder: Path) -> None:
    """`datasets` shows a second progress bar for writing what has just been tokenised."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        rows.save_to_disk(folder)
    finally:
        if not hidden:
            enable_progress_bars()


def _check_max_length(config: BackboneConfig, max_length: int) -> None:
    allowed = facts_of(load_model_config(config)).max_positions
    if allowed is not None and max_length > allowed:
        raise UserError(
            f"data.max_length is {max_length}, but the backbone takes {allowed} tokens: set data.max_length={allowed}"
        )


def _fingerprint(config: RunConfig, sources: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Everything that data/ depends on, part by part, but for special tokens in the texts."""
    identities = _each(sources, lambda split: source_identity(sources[split], split))
    seed, names = config.run.seed, config.labels.names
    return data_fingerprint(config.data, names, seed, tokenizer_fingerprint(tokenizer), identities)


def _each(splits: Mapping[str, Any], work: Callable[[str], Result]) -> dict[str, Result]:
    """`work` on every split; the faults of all of them in one UserError."""
    results, faults = {}, []
    for split in splits:
        try:
            results[split] = work(split)
        except UserError as fault:
            faults.append(str(fault))
    if faults:
        raise UserError("; ".join(faults))
    return results


def _kept(config: RunConfig, split: str, rows: Dataset, indices: dict[str, int]) -> Dataset:
    """The rows of a split that its limits leave."""
    limit = getattr(config.data, f"{split}_limit")
    count = config.data.train_per_label if split == "train" else None
    if count is None and (limit is None or limit >= len(rows)):
        return rows
    positions = pc.index_in(rows.data.column("label"), pa.array(list(indices))).to_numpy()
    labels = np.array(list(indices.values()))[positions]
    if count is not None:
        return rows.select(rows_per_label(labels, count, config.run.seed))
    if limit < len(set(indices.values())):
        raise UserError(f"data.{split}_limit is {limit}, less than one row for each of the {len(indices)} labels")
    return rows.select(balanced_subset(labels, limit, config.run.seed if split == "train" else 0))


def _label_warnings(labels: Labels, splits: dict[str, CheckedSplit], tokenised: dict[str, dict[str, Any]]) -> list[str]:
    untrained = [repr(name) for name in labels.names if not tokenised["train"]["per_label"][name]]
    warnings = [f"no training text has the label(s) {some(untrained)}"] if untrained else []
    for alike in look_alikes(labels.names):
        warnings.append(f"{' and '.join(map(repr, alike))} are different labels, but differ by case or style alone")
    if all(name.isdecimal() for name in labels.names):
        warnings.append("the labels are numbers, which say nothing to the backbone: give them words with labels.names")
    doubts = [doubt(split, found.labels, labels) for split, found in splits.items()]
    return warnings + [warning for warning in doubts if warning]


def _overlap_warnings(splits: dict[str, CheckedSplit]) -> list[str]:
    warnings = []
    for first, second in combinations(splits, 2):
        shared = overlap(splits[first], splits[second])
        if shared:
            places = [f"row {splits[second].rows[index]['row']}" for index in shared[:3]]
            warnings.append(f"{len(shared)} {second} texts are in {first} too: {some(places, len(shared))}")
    return warnings


def _cut_warnings(splits: dict[str, dict[str, Any]], config: RunConfig) -> list[str]:
    limit = f"data.max_length={config.data.max_length}"
    return [
        f"{counts['truncated']} of {counts['rows']} {split} texts were cut to {limit} tokens"
        for split, counts in splits.items()
        if counts["truncated"]
    ]


def _report(manifest: dict[str, Any]) -> None:
    for split, counts in manifest["splits"].items():
        shown = ", ".join(f"{name} {count}" for name, count in list(counts["per_label"].items())[:10])
        more = ", ..." if len(counts["per_label"]) > 10 else ""
        size = f"{counts['rows']} rows, {counts['tokens']} tokens, longest {counts['longest']}"
        log.info("%s: %s; %s%s", split, size, shown, more)
    for warning in manifest["warnings"]:
        log.warning("%s", warning)
