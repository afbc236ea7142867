"""Whatever the files say their labels are: every row gets the label that was meant, or the files are refused.

covers data/labels, data/sources
"""

import csv
import json
import random
import unicodedata
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.config import DataConfig
from pipeline.data.labels import (
    known_labels,
    label_indices,
    label_name,
)
from pipeline.data.sources import read_split

SPLITS = ("train", "validation", "test")


POOLS = [
    ["roads", "trams", "parks and lakes", "schools", "housing"],
    ["café", "CAFÉ", "m²", "m2", "naïve  art"],
    ["1", "0", "3", "2", "4"],
    ["1", "2", "3", "4", "5"],
    ["0", "1", "2", "3", "4"],
    ["-1", "10", "9", "1.5", "1e3"],
    ["True", "False", "None", "nan", "0"],
]
FORMATS = ["csv", "tsv", "json", "jsonl", "parquet"]
STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
SIGNED = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(5, 2),
    pa.dictionary(pa.int8(), pa.int64()), *STRINGS,
]  # fmt: skip
NUMBERS = [*SIGNED, pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


def spelled(name, chance):
    """A spelling of a name that is the same name."""
    variants = [
        unicodedata.normalize("NFD", name),
        f" {name}",
        name.replace(" ", "\u00a0"),
        name.replace(" ", "  "),
        f"{name}\u200b",
    ]
    return chance.choice([name, *variants])


def write_parquet(path, values, chance, own_names):
    numbers = all(isinstance(value, int) for value in values)
    kind = chance.choice((SIGNED if min(values) < 0 else NUMBERS) if numbers else STRINGS)
    if own_names is not None:
        kind = chance.choice([pa.int64(), pa.int64(), pa.int8(), pa.uint16(), pa.int32(), pa.float64()])
    if kind in STRINGS or pa.types.is_decimal(kind):
        values = list(map(Decimal if pa.types.is_decimal(kind) else str, values))
    texts = pa.array([f"text {n}" for n in range(len(values))])
    if pa.types.is_dictionary(kind):
        label = chance.choice([pa.array(pd.Categorical(values)), pa.array(values).dictionary_encode()])
    else:
        label = pa.array(values).cast(kind)
    table = pa.table(
        {"other": pa.array([[("k", 1)]] * len(values), pa.map_(pa.string(), pa.int8())), "text": texts, "label": label}
    )
    if own_names is not None:
        features = Features({"text": Value("string"), "label": ClassLabel(names=own_names)})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, path)


def write_file(folder, split, values, chance, own_names=None):
    """A file of a random format: `values` are strings or integers; with `own_names` they are ids."""
    form = "parquet" if own_names is not None else chance.choice(FORMATS)
    path = Path(folder) / f"{split}.{form}"
    texts = [f"text {n}" for n in range(len(values))]
    if form == "parquet":
        write_parquet(path, values, chance, own_names)
    elif form in ("csv", "tsv"):
        as_floats = all(isinstance(value, int) for value in values) and chance.random() < 0.3
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="," if form == "csv" else "\t")
            writer.writerows([("text", "label"), *zip(texts, map(float, values) if as_floats else values, strict=True)])
    else:
        shapes = [lambda value: value, str, float] if all(isinstance(value, int) for value in values) else [str]
        rows = [
            {"label": chance.choice(shapes)(value), "text": text} for text, value in zip(texts, values, strict=True)
        ]
        path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    return str(path)


def speak(folder, split, way, truth, names, listed, chance):
    """Writes a file whose rows mean `truth` (positions in `names`) in one of the ways; its path and its own names."""
    if way == "ids":
        # Not in training: with a label more than there are, indices that count from 1 cannot be told from others.
        extra = ["unused"] if split != "train" and chance.random() < 0.1 else []
        own = chance.sample(names, len(names)) + extra
        present = [name for name in own if name in {names[t] for t in truth}]
        own = present if chance.random() < 0.3 else own
        return write_file(folder, split, [own.index(names[t]) for t in truth], chance, own), own
    if way == "indices":
        return write_file(folder, split, [listed.index(names[t]) for t in truth], chance), None
    if way == "indices from 1":
        return write_file(folder, split, [listed.index(names[t]) + 1 for t in truth], chance), None
    values = [spelled(names[t], chance) for t in truth]
    if way == "a typo":
        values[chance.randrange(len(values))] = names[truth[0]] + "x"
    if chance.random() < 0.5 and all(value.strip().lstrip("-").isdecimal() for value in values):
        values = list(map(int, values))
    return write_file(folder, split, values, chance), None


def read_all(folder, files, configured):
    """By split the names of its rows; and all names."""
    checked = {s: read_split(path, s, DataConfig(train=path), Path(folder) / f"{s}.arrow") for s, path in files.items()}
    labels = known_labels(checked["train"].labels, configured)
    indices = {split: label_indices(split, found.labels, labels) for split, found in checked.items()}
    return {s: [labels.names[indices[s][v]] for v in found.rows["label"]] for s, found in checked.items()}, labels.names


ways = st.sampled_from(["names", "ids", "indices", "indices", "indices from 1", "a typo"])


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(POOLS),
    st.integers(2, 5),
    st.sampled_from(["names", "ids", "ids", "indices"]),
    ways,
    ways,
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_row_is_right_or_the_files_are_refused(
    tmp_path_factory, pool, count, train, validation, test, lists, seed
):
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("files")
    names = [label_name(name) for name in pool[:count]]
    configured = chance.sample(names, count) if lists else None
    listed, files, meant, spoken = configured, {}, {}, {"train": train, "validation": validation, "test": test}
    for split, way in spoken.items():
        # An index means nothing without a list; and where a plain training file has numbers for names, a name wins.
        ids = spoken["train"] == "ids" and way != "indices from 1"
        numbers_are_names = not ids and any(name.isdecimal() for name in names)
        if way.startswith("indices") and (listed is None or numbers_are_names):
            way = spoken[split] = "names"
        truth = list(range(count)) if split == "train" or way == "indices from 1" else []
        meant[split] = truth + [chance.randrange(count) for _ in range(chance.randint(1, 4))]
        files[split], own = speak(folder, split, way, meant[split], names, listed, chance)
        if split == "train" and own is not None and (listed is None or chance.random() < 0.5):
            listed = [name for name in own if name in names]  # whoever exports the ids of training means these
    spelled_out = configured and [spelled(name, chance) for name in configured]
    refusal = ""
    try:
        found, known = read_all(folder, files, spelled_out)
    except UserError as error:
        refusal = str(error)
    event("refused" if refusal else "read")
    if refusal:
        honest = {"names", "ids"} >= set(spoken.values()) and "unused" not in refusal
        assert not honest or "mean one thing" in refusal, f"without need: {refusal}"
        assert "\n" not in refusal
        return
    assert len(set(known)) == len(known) and (configured is None or known == configured)
    for split, truth in meant.items():
        assert found[split] == [names[t] for t in truth], f"{split}, said by {spoken[split]}"


# Files, and configs, that were silently read wrongly ---------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 6), min_size=2, max_size=6), st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_numbers_without_names_are_names(tmp_path_factory, train, test):
    assume(len(set(train)) > 1)
    folder, chance = tmp_path_factory.mktemp("files"), random.Random(str((train, test)))
    files = {"train": write_file(folder, "train", train, chance), "test": write_file(folder, "test", test, chance)}
    if set(test) <= set(train):
        found, known = read_all(folder, files, None)
        assert known == list(map(str, sorted(set(train)))) and found["test"] == list(map(str, test))
    else:
        with pytest.raises(UserError, match="known are"):
            read_all(folder, files, None)
