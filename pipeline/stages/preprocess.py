"""Stage 1: labelled texts are read, checked and tokenised into the run directory's data/."""

import hashlib
import json
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
from pipeline.data.labels import hypotheses, label_indices, label_names
from pipeline.data.sources import CheckedSplit, nearest, overlap, read_split, some, split_file
from pipeline.data.tokenising import (
    balanced_subset,
    rows_per_label,
    rows_with_special_tokens,
    summary,
    tokenise,
    with_special_tokens,
)
from pipeline.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from pipeline.errors import UserError
from pipeline.integrity import is_whole
from pipeline.launcher import world_size
from pipeline.rundir import RunDir, atomic_dir, differences, read_json, write_json

log = logging.getLogger(__name__)
Result = TypeVar("Result")

VERSION = 1
SPLITS = ("train", "validation", "test")


def preprocess(config: RunConfig) -> dict[str, Any]:
    """Makes data/ in the run directory, or finds it current. Rank 0 does it; the others wait for it.

    Returns:
        The manifest: version, fingerprint, labels (names in index order), splits (rows, tokens, longest, truncated,
        per_label of each), special_tokens (rows of each that have some in a text), warnings, has_pair.

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
    sources = {split: source for split in SPLITS if (source := getattr(config.data, split)) is not None}
    wanted = _fingerprint(config, sources, tokenizer)
    if run.manifest_file.is_file() and is_whole(run.data, "preprocess"):
        manifest = read_json(run.manifest_file)
        special = _special_tokens(manifest, run, tokenizer)
        changed = differences(manifest["fingerprint"], with_special_tokens(wanted, config.data, special))
        if not changed:
            log.info("preprocess: %s is current", run.data)
            return manifest
        log.info("preprocess: %s is stale (%s), made again", run.data, "; ".join(changed))
    with atomic_dir(run.data, sums=True) as folder, TemporaryDirectory(dir=folder) as scratch:
        built = _build(config, sources, tokenizer, folder, Path(scratch))
        fingerprint = with_special_tokens(wanted, config.data, built["special_tokens"])
        manifest = {"version": VERSION, "fingerprint": fingerprint, **built}
        write_json(folder / run.manifest_file.name, manifest)
    _report(manifest)
    return manifest


def _build(
    config: RunConfig, sources: dict[str, str], tokenizer: PreTrainedTokenizerBase, folder: Path, scratch: Path
) -> dict[str, Any]:
    """Reads all splits, then tokenises them into `folder`; returns the manifest's part on what was found."""

    def read(split: str) -> CheckedSplit:
        return read_split(sources[split], split, config.data, scratch / f"{split}.arrow")

    splits = _each(sources, read)
    train = splits["train"]
    names = label_names(list(train.labels), config.labels.names, train.label_names)
    hypotheses(names, config.labels)  # a wording that does not fit is said before the long work
    indices = _each(splits, lambda split: _checked_labels(split, splits[split], names))
    tokenised, special = {}, {}
    for split, read_rows in splits.items():
        rows = _kept(config, split, read_rows.rows, indices[split])
        file = scratch / f"{split}-tokens.arrow"
        result = tokenise(rows, tokenizer, indices[split], config.data.max_length, config.data.workers, file, split)
        _save_quietly(result, folder / split)
        tokenised[split] = summary(result, names)
        special[split] = rows_with_special_tokens(result, tokenizer)
    warnings = [*_label_warnings(names, tokenised), *_overlap_warnings(splits), *_cut_warnings(tokenised, config)]
    pair = config.data.text_pair is not None
    return {
        "labels": names,
        "splits": tokenised,
        "special_tokens": special,
        "warnings": warnings,
        "has_pair": pair,
    }


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
    """Everything that data/ depends on, part by part."""
    data = config.data
    identities = _each(sources, lambda split: _identity(sources[split], split))
    return {
        **{f"data.{split}": identity for split, identity in identities.items()},
        **{f"data.{key}": str(getattr(data, key)) for key in ("text", "text_pair", "label", "quoting", "max_length")},
        **{f"data.{key}": _draw(config, key) for key in ("train_limit", "train_per_label")},
        **{f"data.{key}": str(getattr(data, key)) for key in ("validation_limit", "test_limit")},
        "labels.names": json.dumps(config.labels.names, ensure_ascii=False),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }


def _special_tokens(manifest: dict[str, Any], run: RunDir, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """By split the rows that have some in a text. Older versions, which did not count them, read them as such."""
    if "special_tokens" in manifest:
        return manifest["special_tokens"]
    splits = {split: Dataset.load_from_disk(str(run.data / split)) for split in manifest["splits"]}
    return {split: rows_with_special_tokens(rows, tokenizer) for split, rows in splits.items()}


def _draw(config: RunConfig, key: str) -> str:
    """Rows that the seed draws."""
    count = getattr(config.data, key)
    return "None" if count is None else f"{count} rows by seed {config.run.seed}"


def _identity(source: str, split: str) -> str:
    """Size and hash of a file; a hub data set goes by its name, which should pin a revision."""
    file = split_file(source, split)
    if file is None:
        return source
    try:
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return f"{digest}, {file.suffix.lower()}, {file.stat().st_size} bytes"
    except OSError as error:
        raise UserError(f"data.{split}: {file} cannot be read ({error.strerror})") from error


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


def _checked_labels(split: str, rows: CheckedSplit, names: list[str]) -> dict[str, int]:
    """The index of every label value of a split. Raises UserError for values that are no label."""
    indices = label_indices(list(rows.labels), names)
    unlisted = {value: seen for value, seen in rows.labels.items() if value not in indices}
    if unlisted:
        faults = [
            f"{value!r}{nearest(value, names)} in {seen.count} rows, first {seen.places[0]}"
            for value, seen in unlisted.items()
        ]
        known = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        problem = f"{split} has labels that are neither in training nor listed in labels.names"
        raise UserError(f"{rows.source}: {problem}: {some(faults)}; known are {known}")
    return indices


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


def _label_warnings(names: list[str], splits: dict[str, dict[str, Any]]) -> list[str]:
    untrained = [repr(name) for name in names if not splits["train"]["per_label"][name]]
    warnings = [f"no training text has the label(s) {some(untrained)}"] if untrained else []
    if all(name.isdecimal() for name in names):
        warnings.append("the labels are numbers, which say nothing to the backbone: give them words with labels.names")
    return warnings


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
