"""Stage 1: labelled texts are read, checked and tokenized into the run directory's data/."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from pipeline.config import RunConfig
from pipeline.core.artefact import differences
from pipeline.core.checksums import write_sums
from pipeline.core.errors import SHOWN, UserError, some
from pipeline.core.files import atomic_dir, read_json, write_json
from pipeline.core.run_dir import RunDir
from pipeline.data.checks import SKIPPED
from pipeline.data.config import UNLABELLED, DataConfig, LabelsConfig, OneOrSeveral
from pipeline.data.fingerprint import (
    DATA_FORMAT,
    data_artefact,
    data_fingerprint,
    made_from,
    place_of,
    source_identity,
    sources_of,
)
from pipeline.data.hypotheses import hypotheses
from pipeline.data.labelled import check_labels_of_format_1, each_split, read_splits
from pipeline.data.labels import Labels, doubt, look_alikes
from pipeline.data.sources import CheckedSplit, overlap
from pipeline.data.subsets import balanced_subset, rows_per_label
from pipeline.data.texts import TextEncoder
from pipeline.data.tokens import (
    rows_with_special_tokens,
    special_token_rows,
    summary,
    tokenize,
    unknown_warning,
    with_special_tokens,
    without_bars,
)
from pipeline.engine.backbone import Backbone, backbone_of, text_encoder
from pipeline.engine.checks import check_max_length
from pipeline.engine.startup import join

log = logging.getLogger(__name__)


def preprocess(config: RunConfig, backbone: Backbone | None = None) -> dict[str, Any]:
    """Makes data/ in the run directory, or finds it current. Rank 0 does it; the others wait for it.

    `backbone`: the command's; None: one of its own.

    Returns:
        The manifest: version, fingerprint, sources (name of each split's), labels (names in index order), splits (rows,
        tokens, longest, truncated, per_label of each), special_tokens (rows of each split that have some in a text),
        cut (splits that were cut from the training texts), skipped (rows of each source that were left out), warnings,
        has_pair.

    Raises:
        UserError: everything that is wrong with the input; then nothing is written.
    """
    given = _Input(config.data, config.labels, config.run.seed, backbone or backbone_of(config.backbone, config.data))
    return join(config).on_main(lambda: _preprocess(config.run_dir, given))


def wanted_data(data: DataConfig, labels: LabelsConfig, seed: int, backbone: Backbone) -> dict[str, str]:
    """The fingerprint of the data/ that `preprocess` would make, but for special tokens in the texts.

    Rank 0 calls it. Raises UserError where a source cannot be read.
    """
    return _Input(data, labels, seed, backbone).fingerprint()


@dataclass(frozen=True)
class _Input:
    """What data/ is made from."""

    data: DataConfig
    labels: LabelsConfig
    seed: int
    backbone: Backbone

    @cached_property
    def sources(self) -> dict[str, str]:
        return sources_of(self.data)

    @cached_property
    def texts(self) -> TextEncoder:
        return text_encoder(self.backbone, self.data)

    def fingerprint(self) -> dict[str, str]:
        """Everything that data/ depends on, part by part, but for special tokens in the texts."""
        identities = each_split(self.sources, lambda split: source_identity(self.sources[split], split))
        tokenizer = self.backbone.tokenizer_fingerprint
        return data_fingerprint(self.data, self.labels.names, self.seed, tokenizer, identities)


def _preprocess(run: RunDir, given: _Input) -> dict[str, Any]:
    run.create()
    check_max_length(given.backbone, given.data.max_length)
    given.texts.check(given.backbone.facts.vocab_size)
    wanted = given.fingerprint()
    if run.manifest_file.is_file() and (found := _current(run, given, wanted)) is not None:
        return found
    with atomic_dir(run.data, sums=True) as folder, TemporaryDirectory(dir=folder) as scratch:
        built = _build(given, folder, Path(scratch))
        manifest = {
            "version": DATA_FORMAT,
            "fingerprint": with_special_tokens(wanted, given.data, built["special_tokens"]),
            "sources": {split: place_of(source) for split, source in given.sources.items()},
            **built,
        }
        if changed := differences(wanted, given.fingerprint()):
            raise UserError(f"preprocess: the texts changed while they were read ({'; '.join(changed)}): run it again")
        write_json(folder / run.manifest_file.name, manifest)
    _report(manifest)
    return manifest


def _current(run: RunDir, given: _Input, wanted: dict[str, str]) -> dict[str, Any] | None:
    """The manifest of what is there, if that is whole and current; one of an older format becomes one of today's.

    Raises UserError where the older format means something else today.
    """

    def upgrade() -> None:
        check_labels_of_format_1(read_json(run.manifest_file), run.data, given.data, given.labels.names, given.sources)

    artefact = data_artefact(run.data, upgrade)
    manifest: dict[str, Any] | None = artefact.found(lambda: read_json(run.manifest_file))
    if manifest is None:
        return None
    special = special_token_rows(manifest, run.data, given.backbone.tokenizer)
    if not artefact.is_current(made_from(manifest), with_special_tokens(wanted, given.data, special)):
        return None
    if manifest["version"] != DATA_FORMAT:
        manifest |= {"version": DATA_FORMAT, "special_tokens": special}
        if not run.data.is_symlink():  # what is linked is another run's, which renews its own
            write_json(run.manifest_file, manifest)
            write_sums(run.data)
    return manifest


def _build(given: _Input, folder: Path, scratch: Path) -> dict[str, Any]:
    """Reads all splits, then tokenizes them into `folder`; returns the manifest's part on what was found."""
    data, tokenizer = given.data, given.backbone.tokenizer
    splits, labels, indices = read_splits(data, given.labels.names, given.sources, scratch)
    names = labels.names
    hypotheses(names, given.labels)  # a hypothesis that does not fit is refused before the long work
    kept = {split: _kept(data, given.seed, split, splits[split].rows, indices[split]) for split in data.splits}
    if UNLABELLED in splits:
        kept[UNLABELLED] = _not_in(kept["train"], splits["train"], splits[UNLABELLED])
    tokenized, special, unknown = {}, {}, {}
    for split, rows in kept.items():
        file = scratch / f"{split}-tokens.arrow"
        result = tokenize(rows, given.texts, indices[split], data.workers, file, split)
        with without_bars():  # of writing what has just been tokenized
            result.save_to_disk(folder / split)
        tokenized[split] = summary(result, [] if split == UNLABELLED else names)
        special[split] = rows_with_special_tokens(result, tokenizer)
        unknown[split] = unknown_warning(result, given.texts, split)
    if (scratch / SKIPPED).exists() and (scratch / SKIPPED).stat().st_size:
        shutil.move(scratch / SKIPPED, folder / SKIPPED)
    labelled = [split for split in given.sources if split != UNLABELLED]
    warnings = [
        *(warning for found in splits.values() for warning in found.warnings),
        *(warning for warning in unknown.values() if warning),
        *_label_warnings(labels, given.labels.texts, {split: splits[split] for split in labelled}, tokenized),
        *_overlap_warnings(splits),
        *_cut_warnings(tokenized, data.max_length),
    ]
    return {
        "labels": names,
        "splits": tokenized,
        "special_tokens": special,
        "cut": list(data.shares),
        "skipped": {split: splits[split].skipped for split in given.sources if splits[split].skipped},
        "warnings": warnings,
        "has_pair": data.text_pair is not None,
    }


def _kept(data: DataConfig, seed: int, split: str, rows: Dataset, indices: dict[str, int]) -> Dataset:
    """The split after `*_limit` and `train_per_label`."""
    limit = getattr(data, f"{split}_limit")
    count = data.train_per_label if split == "train" else None
    if count is None and (limit is None or limit >= len(rows)):
        return rows
    positions = pc.index_in(rows.data.column("label"), pa.array(list(indices))).to_numpy()
    labels = np.array(list(indices.values()))[positions]
    if count is not None:
        return rows.select(rows_per_label(labels, count, seed))
    if limit < len(set(indices.values())):
        raise UserError(f"data.{split}_limit is {limit}, less than one row for each of the {len(indices)} labels")
    return rows.select(balanced_subset(labels, limit, seed if split == "train" else 0))


def _not_in(kept: Dataset, train: CheckedSplit, unlabelled: CheckedSplit) -> Dataset:
    """The unlabelled rows whose texts are not among the training texts: `kept`, some of the rows of `train`.

    UserError where there are none.
    """
    known = train.text_hashes[np.isin(train.rows["row"], kept["row"])]
    places = np.flatnonzero(~np.isin(unlabelled.text_hashes, known))
    if not len(places):
        raise UserError(f"data.{UNLABELLED}: all of its texts are training texts too: give others")
    return unlabelled.rows.select(places)


def _label_warnings(
    labels: Labels,
    worded: Mapping[str, OneOrSeveral],
    splits: dict[str, CheckedSplit],
    tokenized: dict[str, dict[str, Any]],
) -> list[str]:
    """`worded`: labels.texts."""
    untrained = [repr(name) for name in labels.names if not tokenized["train"]["per_label"][name]]
    warnings = [f"no training text has the label(s) {some(untrained)}"] if untrained else []
    for alike in look_alikes(labels.names):
        warnings.append(f"{' and '.join(map(repr, alike))} are different labels, but differ by case or style alone")
    if all(name.isdecimal() for name in labels.names) and not worded:
        say = "which say nothing to the backbone: give them words with labels.names or labels.texts"
        warnings.append(f"the labels are numbers, {say} (from Python: hypotheses)")
    doubts = [doubt(split, found.labels, labels) for split, found in splits.items()]
    return warnings + [warning for warning in doubts if warning]


def _overlap_warnings(splits: dict[str, CheckedSplit]) -> list[str]:
    warnings = []
    for first, second in combinations(splits, 2):
        if (first, second) == ("train", UNLABELLED):
            continue  # these are left out
        shared = overlap(splits[first], splits[second])
        if shared:
            places = [f"row {splits[second].rows[index]['row']}" for index in shared[:SHOWN]]
            warnings.append(f"{len(shared)} {second} texts are in {first} too: {some(places, len(shared))}")
    return warnings


def _cut_warnings(splits: dict[str, dict[str, Any]], max_length: int) -> list[str]:
    limit = f"data.max_length={max_length}"
    return [
        f"{counts['truncated']} of {counts['rows']} {split} texts were cut to {limit} tokens"
        for split, counts in splits.items()
        if counts["truncated"]
    ]


def _report(manifest: dict[str, Any]) -> None:
    for split, counts in manifest["splits"].items():
        shown = ", ".join(f"{name} {count}" for name, count in list(counts["per_label"].items())[:10]) or "no labels"
        more = ", ..." if len(counts["per_label"]) > 10 else ""
        size = f"{counts['rows']} rows, {counts['tokens']} tokens, longest {counts['longest']}"
        log.info("%s: %s; %s%s", split, size, shown, more)
    for warning in manifest["warnings"]:
        log.warning("%s", warning)
