"""All splits read together: their labels are those of one classifier."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset

from pipeline.core.errors import UserError, about, some
from pipeline.data.config import UNLABELLED, DataConfig
from pipeline.data.labels import Labels, known_labels, label_indices, label_name
from pipeline.data.shares import cut
from pipeline.data.sources import CheckedSplit, read_split
from pipeline.data.tokens import column

Result = TypeVar("Result")

NO_LABEL = -1
"""In the place of the index of a text's label."""


def each_split(splits: Iterable[str], work: Callable[[str], Result]) -> dict[str, Result]:
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


def read_splits(
    data: DataConfig, names: Sequence[str] | None, sources: Mapping[str, str], scratch: Path
) -> tuple[dict[str, CheckedSplit], Labels, dict[str, dict[str, int]]]:
    """The splits, the labels, and by split the index of each label as the split has it. `names`: labels.names.

    Raises UserError that names every fault of every split.
    """

    def read(split: str) -> CheckedSplit:
        with about(f"data.{split} {sources[split]!r}"):
            return read_split(sources[split], split, data, scratch / f"{split}.arrow")

    splits = each_split(sources, read)
    if data.shares:
        splits |= cut(splits["train"], data.shares, scratch)
        splits = {name: splits[name] for name in (*data.splits, UNLABELLED) if name in splits}
    labels = known_labels(splits["train"].labels, names)

    def indices(split: str) -> dict[str, int]:
        return {"": NO_LABEL} if split == UNLABELLED else label_indices(split, splits[split].labels, labels)

    return splits, labels, each_split(splits, indices)


def check_labels_of_format_1(
    manifest: Mapping[str, Any], folder: Path, data: DataConfig, names: Sequence[str] | None, sources: Mapping[str, str]
) -> None:
    """The upgrade of data/ in `folder` from format 1, which did not always read ids by the names of their own file.

    Raises UserError where a row has another label today, or is refused: what was trained on it is wrong.
    """
    with TemporaryDirectory() as scratch:
        try:
            splits, labels, indices = read_splits(data, names, sources, Path(scratch))
        except UserError as fault:
            raise UserError(f"{fault} (an older version read this otherwise, and made '{folder}' of it)") from fault
        old_names = np.array(list(map(label_name, manifest["labels"])), dtype=object)
        is_same = sorted(old_names) == sorted(labels.names)
        wrong = [] if is_same else [f"the labels were {', '.join(manifest['labels'])}"]
        for split, found in splits.items():
            kept = Dataset.load_from_disk(str(folder / split))
            rows, old = column(kept, "row"), old_names[column(kept, "label")]
            values = found.rows.data.column("label").to_pylist()
            new = np.array([labels.names[indices[split][values[row - 1]]] for row in rows], dtype=object)
            wrong += [f"{split} row {rows[n]} was {old[n]!r}, is {new[n]!r}" for n in np.flatnonzero(old != new)]
    if wrong:
        raise UserError(
            f"'{folder}' was made by an older version that read labels wrongly: {some(wrong)}; so what was trained and "
            f"evaluated on it is wrong: choose another run.dir, or remove '{folder.parent}'"
        )
