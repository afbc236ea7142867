"""Data files of every format, and what is not a file."""

import json
import struct
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.case import Bench, Case, deep

LONG = 20 * 2**20
NEITHER = "validation has labels that are neither in training"
GOOD = 'text,label\na goal,sport\nshares fell,business\n"stars, born",science\n'


def data(
    name: str, file: str, content: str | bytes | Callable[[], str | bytes], says: str, *keys: str, status: int = 2
) -> Case:
    """A training file with this content."""

    def make(bench: Bench) -> list[str]:
        path = bench.file(file, content() if callable(content) else content)
        return bench.dry_run(f"data.train={json.dumps(str(path))}", *keys)

    return Case(name, make, says, status)


def place(name: str, path: str, says: str) -> Case:
    return Case(name, lambda bench: bench.dry_run(f"data.train={json.dumps(path)}"), says)


def table(name: str, make_table: Callable[[], pa.Table], says: str, **settings: object) -> Case:
    def make(bench: Bench) -> list[str]:
        pq.write_table(make_table(), bench.folder / "t.parquet", **settings)
        return bench.dry_run(f"data.train={bench.folder / 't.parquet'}")

    return Case(name, make, says)


def columns(count: int) -> str:
    return ",".join(["text", "label", *(f"c{n}" for n in range(count))])


def long_cell(rows: int, size: int) -> Callable[[], pa.Table]:
    return lambda: pa.table({"text": ["x" * size] * rows, "label": ["a"] * rows})


PLACES = [
    Case(
        "fifo as train.csv",
        lambda bench: bench.dry_run(f"data.train={bench.fifo('t.csv')}"),
        "t.csv: is a pipe, not a file",
    ),
    Case("fifo as train.parquet", lambda bench: bench.dry_run(f"data.train={bench.fifo('t.parquet')}"), "is a pipe"),
    Case(
        "fifo as test.jsonl",
        lambda bench: bench.run("preprocess", f"data.test={bench.fifo('t.jsonl')}"),
        "a pipe, not a file",
    ),
    Case(
        "/dev/zero as train.tsv",
        lambda b: b.dry_run(f"data.train={b.link('t.tsv', '/dev/zero')}"),
        "t.tsv: is a device",
    ),
    Case(
        "/dev/zero in preprocess",
        lambda b: b.run("preprocess", f"data.train={b.link('t.tsv', '/dev/zero')}"),
        "it is a device, not a file",
    ),
    Case("/dev/zero as train.json", lambda b: b.dry_run(f"data.train={b.link('t.json', '/dev/zero')}"), "is a device"),
    Case("/dev/null as train.csv", lambda b: b.dry_run(f"data.train={b.link('t.csv', '/dev/null')}"), "is a device"),
    Case("a link that leads nowhere", lambda b: b.dry_run(f"data.train={b.link('t.csv', '/nowhere')}"), "no such file"),
    Case("a loop of links as data", lambda b: b.dry_run(f"data.train={b.link('t.csv', 't.csv')}"), "symbolic links"),
    place("a folder as data", "/tmp", "is a folder, not a file"),
    place("no such file", "/nowhere/t.csv", "no such file"),
    place("a file under a file", "/etc/passwd/t.csv", "not a directory"),
    place("a name of 5,000 characters", "/tmp/" + "x" * 5000 + ".csv", "file name too long"),
    place("a name with a null", "/tmp/a\0.csv", "'data.train': a null character cannot stand in it"),
    place("a file of another kind", "/etc/hostname", "unknown file type; use .csv"),
    place("hub: and nothing", "hub:", "not a hub data set"),
    place("hub: a split alone", "hub::train", "not a hub data set"),
    place("hub: offline", "hub:nobody/nothing:train", "the hub cannot be reached .* hub:nobody/nothing:train"),
    place("hub: a revision of brackets", "hub:a@[[[:x:train", "the hub cannot be reached"),
    Case(
        "a folder with a loading script",
        lambda b: [b.file("set/set.py", "raise SystemExit(1)"), b.dry_run(f"data.train='hub:{b.folder}/set:train'")][1],
        "cannot be loaded",
    ),
]

DELIMITED = [
    data(
        "csv: 100,000 columns",
        "t.csv",
        columns(100_000) + "\n" + "," * 100_001 + "\n",
        "100,002 columns, at most 10,000",
    ),
    data("tsv: 100,000 columns", "t.tsv", columns(100_000).replace(",", "\t") + "\n", "100,002 columns, at most"),
    data(
        "csv: a row of a million fields",
        "t.csv",
        "text,label\n" + "," * 1_000_000 + "\n",
        "1000001 fields where the header has 2",
    ),
    data("csv: a line without an end", "t.csv", lambda: b"text,label\n" + b"x" * LONG, "line 2 is longer than 16 MiB"),
    data("csv: a header without an end", "t.csv", lambda: b"x" * LONG, "line 1 is longer than 16 MiB"),
    data("csv: a quote never closed", "t.csv", lambda: 'text,label\n"' + "x\n" * LONG, "quote not closed"),
    data("tsv: null bytes", "t.tsv", lambda: b"\0" * LONG, "longer than 16 MiB"),
    data("csv: null characters", "t.csv", "text,label\n\0,\0\n\0,b\n", NEITHER),
    data("csv: not UTF-8", "t.csv", b"text,label\n\xff\xfe,a\n", "line 2 is not UTF-8"),
    data("csv: a header that is not UTF-8", "t.csv", b"text,l\xffbel\na,b\n", "header cannot be read"),
    data("csv: UTF-16", "t.csv", GOOD.encode("utf-16"), "line 1 is not UTF-8; save the file as UTF-8"),
    data("csv: empty", "t.csv", b"", "the file is empty"),
    data("csv: blank lines alone", "t.csv", "\n" * 100_000, "no column"),
    data("csv: a header alone", "t.csv", "text,label\n", "no rows"),
    data("csv: a column twice", "t.csv", "text,text,label\na,b,c\n", "'text' is there 2 times"),
    data("csv: no label column", "t.csv", "text,lable\na,b\n", "no column 'label'.*nearest: 'lable'"),
    data("csv: one label", "t.csv", "text,label\na,b\nc,b\n", "at least two"),
    data(
        "csv: 10,001 labels",
        "t.csv",
        "text,label\n" + "".join(f"t,l{n}\n" for n in range(10_001)),
        "more than 10000 different",
    ),
    data(
        "csv: a label of 5,000 digits", "t.csv", f"text,label\na,{'1' * 5000}\nb,c\n", "5,000 characters, at most 1,000"
    ),
    data("csv: a label of a megabyte", "t.csv", f"text,label\na,{'x' * 2**20}\nb,c\n", "1,048,576 characters"),
    data("csv: labels of 900 digits", "t.csv", f"text,label\na,{'1' * 900}\nb,{'2' * 900}\n", NEITHER),
    data("csv: escapes in a label", "t.csv", "text,label\na,\x1b[31mred\nb,c\n", r"known are .*x1b\[31mred"),
    data("csv: an invisible label", "t.csv", "text,label\na,\u200b\nb,c\n", "row 1 .*: no label"),
    data(
        "csv: a text of two megabytes", "t.csv", lambda: GOOD + f"{'x' * 2_000_000},sport\n", "train: 4 rows", status=0
    ),
    data("csv: rows limited to 10^12", "t.csv", GOOD, "train: 3 rows", "data.train_limit=1000000000000", status=0),
    data("csv: renamed parquet", "t.csv", b"PAR1" + bytes(range(256)) * 100, "no column 'text'.*PAR1"),
    data("a file type nobody knows", "t.xlsx", b"PK\3\4", "unknown file type"),
]

JSON = [
    data("json: nested 100,000 deep", "t.json", deep("[", "]"), "row 1: no JSON from here on"),
    data(
        "json: objects nested 100,000 deep",
        "t.json",
        '[{"text": ' + deep('{"a":', "}") + "}]",
        "row 1: no JSON from here on",
    ),
    data("jsonl: nested 100,000 deep", "t.jsonl", deep("[", "]") + "\n", "row 1 .*nested too deeply"),
    data(
        "jsonl: a number of 5,000 digits",
        "t.jsonl",
        f'{{"text": "a", "label": {"1" * 5000}}}\n',
        "row 1 .*: not JSON",
    ),
    data(
        "jsonl: a line without an end", "t.jsonl", lambda: b'{"text": "' + b"x" * LONG, "line 1 is longer than 16 MiB"
    ),
    data("json: a text without an end", "t.json", lambda: b'[{"text": "' + b"x" * LONG, "no JSON from here on"),
    data("json: spaces without an end", "t.json", lambda: b"[" + b" " * 10_000_000, "row 1: no JSON from here on"),
    data("json: a number without an end", "t.json", lambda: b"[" + b"1" * LONG, "row 1: no JSON from here on"),
    data("json: an array not closed", "t.json", '[{"text": "a", "label": "b"}', "the array is not closed"),
    data("json: more behind the array", "t.json", '[{"text": "a", "label": "b"}] {"text": "c"}', "array ends here"),
    data(
        "jsonl: 100,000 keys",
        "t.jsonl",
        json.dumps({f"k{n}": n for n in range(100_000)}) + "\n",
        "no column 'text'.*left out",
    ),
    data("jsonl: a key twice", "t.jsonl", '{"text": "a", "text": "b", "label": "c"}\n', "'text' is there twice"),
    data("jsonl: half a character", "t.jsonl", '{"text": "\\ud800", "label": "c"}\n', "half a character"),
    data(
        "jsonl: infinity as label",
        "t.jsonl",
        '{"text": "a", "label": Infinity}\n',
        "the label inf is neither a string nor an integer",
    ),
    data(
        "jsonl: 1e308 as label",
        "t.jsonl",
        '{"text": "a", "label": 1e308}\n{"text": "b", "label": 2}\n',
        NEITHER,
    ),
    data("jsonl: a list as text", "t.jsonl", '{"text": ["a"], "label": "c"}\n', "'text' is list, not a string"),
    data(
        "jsonl: an object as label", "t.jsonl", '{"text": "a", "label": {"b": 1}}\n', "neither a string nor an integer"
    ),
    data("json: a word", "t.json", "hello", "not JSON"),
]

PARQUET = [
    table("parquet: a cell of 400 MB", long_cell(1, 400_000_000), "row 1: this row is longer than 16 MiB"),
    table("parquet: a long cell, repeated", long_cell(100, LONG), "100 of 100 rows are faulty.*longer than 16 MiB"),
    table(
        "parquet: a long cell in a dictionary",
        lambda: pa.table({"text": pa.array(["x" * LONG] * 50).dictionary_encode(), "label": ["a"] * 50}),
        "50 of 50 rows are faulty.*longer than 16 MiB",
    ),
    table(
        "parquet: 20,000 columns", lambda: pa.table({f"c{n}": [1] for n in range(20_000)}), "20,000 columns, at most"
    ),
    table("parquet: lists as texts", lambda: pa.table({"text": [["a"] * 10], "label": ["a"]}), "not a string"),
    table(
        "parquet: a list of ten million",
        lambda: pa.table({"text": [[1] * 10_000_000], "label": ["a"]}),
        "longer than 16 MiB",
    ),
    table(
        "parquet: no rows",
        lambda: pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        "no rows",
    ),
    table("parquet: nulls", lambda: pa.table({"text": [None, "a"], "label": ["a", None]}), "2 of 2 rows are faulty"),
    data("parquet: a magic number alone", "t.parquet", b"PAR1PAR1", "not a readable parquet file"),
    data(
        "parquet: a footer of 2 GB",
        "t.parquet",
        b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "not a readable parquet",
    ),
    data("parquet: a text file", "t.parquet", GOOD, "not a readable parquet file"),
    data(
        "parquet: a footer of noise",
        "t.parquet",
        b"PAR1" + b"\x15\xff" * 500 + struct.pack("<I", 1000) + b"PAR1",
        "not a readable",
    ),
]

CASES = [*PLACES, *DELIMITED, *JSON, *PARQUET]
