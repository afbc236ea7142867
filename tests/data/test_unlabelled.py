"""One reader for training and prediction: every format, plain, gzip and piped; nothing is waited for twice.

covers data/readers, data/streams
covers data/rows
"""

import gzip
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core.errors import UserError
from pipeline.data.readers import open_file
from pipeline.data.rows import Row
from pipeline.data.streams import Source
from pipeline.data.unlabelled import Input


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(place: str, texts: list[str] | None = None, quoting: bool | None = None, **keys: object) -> list[Row]:
    input = Input(place, **keys)  # type: ignore[arg-type]
    input.check(["label"])
    return list(input.table(texts or ["text"], quoting, lambda: None).rows)


FILES = {
    "a.txt": "first text\nsecond, “text”",
    "a.csv": 'id,text\n1,first text\n2,"second, “text”"\n',
    "a.tsv": "text\tid\r\nfirst text\t1\r\nsecond, “text”\t2\r\n",
    "a.jsonl": '{"text": "first text"}\n{"id": 3, "text": "second, “text”"}\n',
    "a.ndjson": '{"text": "first text"}\n{"id": 3, "text": "second, “text”"}\n',
    "a.json": '[{"text": "first text"},\n {"id": 3, "text": "second, “text”"}]',
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz"])
def test_a_first_object_need_not_have_every_key(tmp_path: Path, suffix: str) -> None:
    """JSON often lacks the keys of values that are not there: the first row is not the table's header."""
    content = b'[{"n": 1}, {"text": "a", "n": 2}, {"text": "b", "id": 3}]'
    if suffix != "json":
        content = b"\n".join([b'{"n": 1}', b'{"text": "a", "n": 2}', b'{"text": "b", "id": 3}'])
    place = write(tmp_path / f"a.{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)
    rows = read(place, keep=["id"])
    assert [row.number for row in rows] == [1, 2, 3] and [row.values.get("id") for row in rows] == [None, None, 3]
    with pytest.raises(UserError, match=r"no column 'size' \(--keep\); columns: 'n', 'text', 'id'"):
        read(place, keep=["size"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\n \ntwo\n\n"),
        ("a.csv", 'text\n"one\nline"\n\n\ntwo\n\n'),
        ("a.tsv", "text\none\n\n\ntwo\n"),
        ("a.jsonl", '{"text": "one"}\n\n\n{"text": "two"}\n\n'),
    ],
)
def test_blank_lines_before_a_row_are_counted(tmp_path: Path, name: str, content: str) -> None:
    """A cell that is empty in a table of one column may be written so."""
    assert [row.blank_lines for row in read(write(tmp_path / name, content))] == [0, 2]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_formats_agree(tmp_path: Path, name: str, packed: bool) -> None:
    for prefix in ("", "\ufeff"):  # a byte-order mark is no part of the first text
        content = (prefix + FILES[name]).encode()
        place = write(tmp_path / (f"{name}.gz" if packed else name), gzip.compress(content) if packed else content)
        assert [row.values["text"] for row in read(place)] == ["first text", "second, “text”"]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("id,text", True),
        ('"text";"id"', True),
        ("text\tlabel", True),
        ("text", False),
        ("a text, which is long", False),
    ],
)
def test_lines_that_look_like_a_table_are_told_of(
    tmp_path: Path, first: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    place = write(tmp_path / "a.txt", f"{first}\n1,a goal\n")
    assert [row.values["text"] for row in read(place)] == [first, "1,a goal"]
    assert ("starts like a table: give its --format" in caplog.text) is told
    caplog.clear()
    read(place, format="txt")
    assert not caplog.text, "it is what was asked for"


def test_parquet_and_kept_columns(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "id": [7, 8], "other": [1.5, 2.5]}).to_parquet(tmp_path / "a.parquet")
    rows = read(str(tmp_path / "a.parquet"), keep=["id"])
    assert [row.values for row in rows] == [{"text": "a", "id": 7}, {"text": "b", "id": 8}]
    assert [row.place for row in rows] == ["row 1", "row 2"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("quoting", [None, True, False])
def test_training_and_prediction_read_the_same(tmp_path: Path, suffix: str, quoting: bool | None) -> None:
    """What each refused alone: long fields, blank lines, carriage returns; and every fault at its place."""
    mark = "\t" if suffix == "tsv" else ","
    rows = ["text,label".replace(",", mark), "x" * 200_000 + f"{mark}a", "", f"one\rtwo{mark}b", f"alone{mark}b{mark}c"]
    content = "\n".join(rows) + "\n"
    if suffix == "jsonl":
        content = '{"text": "' + "x" * 200_000 + '", "label": 1}\n\n{"text": "one\\rtwo", "label": 2}\n{"text": \n'
    place = write(tmp_path / f"a.{suffix}", content)
    table = open_file(Path(place), quoting, ["text"], "label")
    assert read(place, quoting=quoting) == list(table.rows)


def test_a_line_of_text_is_a_text_and_blank_lines_are_none(tmp_path: Path) -> None:
    place = write(tmp_path / "a.txt", 'one "two\r\n\n \nthree\ttabs\rthree\n')
    assert [(row.line, row.values["text"]) for row in read(place)] == [(1, 'one "two'), (4, "three\ttabs\rthree")]


def test_pairs(tmp_path: Path) -> None:
    expected = [{"one": "a b", "two": "c"}, {"one": "d", "two": "e f"}]
    plain = write(tmp_path / "a.txt", "a b\tc\nd\te f\nonly one\n")
    table = write(tmp_path / "a.csv", "two,one\nc,a b\ne f,d\n")
    *rows, last = read(plain, ["one", "two"])
    assert [row.values for row in rows] == expected == [row.values for row in read(table, ["one", "two"])]
    assert last.fault == "expected 2 texts separated by a tab, found 0 tabs"


def test_a_line_that_is_not_utf8_is_one_fault(tmp_path: Path) -> None:
    faults = [row.fault for row in read(write(tmp_path / "a.txt", b"one\n\xff\xfe\ntwo\n"))]
    assert faults == [None, "byte 0xff on line 2 is not UTF-8", None]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("a.pdf", {}, "unknown ending; give the --format: txt, csv"),
        ("none.txt", {}, "'.*none.txt' cannot be read .no such file"),
        ("folder.txt", {}, "cannot be read .it is a folder"),
        ("a.parquet.gz", {}, "Parquet is read from its end: give a plain file"),
        ("-", {"format": "parquet"}, "standard input: Parquet is read from its end"),
        ("a.txt", {"keep": ["id"]}, "lines of text have no columns"),
        ("a.csv", {"keep": ["label"]}, "the output has a field of that name"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_loaded(
    tmp_path: Path, name: str, keys: dict[str, object], message: str
) -> None:
    for file in ("a.pdf", "a.txt", "a.csv", "a.parquet.gz"):
        write(tmp_path / file, "text\n")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=message):
        Input(name if name == "-" else str(tmp_path / name), **keys).check(["label"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.csv", "id,body\n1,b\n", {}, r"no column 'text' \(the adapter's data.text\); columns: 'id', 'body'"),
        ("a.csv", "id,text\n1,b\n", {"keep": ["ID"]}, r"no column 'ID' \(--keep\) \(nearest: 'id'\)"),
        ("a.csv", "text,id,text\na,1,b\n", {}, "column 'text' is there 2 times"),
        ("a.csv", "text,id,id\na,1,b\n", {"keep": ["id"]}, "column 'id' is there 2 times"),
        ("a.csv", "", {}, "the header cannot be read: there is none"),
        ("a.csv.gz", gzip.compress(b"text\n" + os.urandom(9000).hex().encode())[:-3000], {}, "not a whole gzip file"),
        ("a.csv.gz", b"text\none\n", {}, "is not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"x" * 2**25), {}, "line 1 is longer than 16 MiB"),
    ],
)
def test_what_is_no_such_table_is_refused(
    tmp_path: Path, name: str, content: str | bytes, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, content), **keys)


def test_standard_input_takes_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    for format, name in [(None, "a.txt"), ("csv", "a.csv"), ("json", "a.json"), ("jsonl", "a.json")]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FILES[name].encode())))
        rows = read("-", format=format)
        assert rows[0].values.get("text") == "first text" or (format == "jsonl" and rows[0].fault)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FILES["a.jsonl"].encode())))
    with pytest.raises(UserError, match=r"standard input, by its first object: no column 'id' \(--keep\); columns"):
        read("-", format="jsonl", keep=["id"])


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.txt"])
def test_a_named_pipe_is_opened_once(tmp_path: Path, name: str) -> None:
    """Its writer ends with the first reader."""
    os.mkfifo(tmp_path / name)
    writer = threading.Thread(target=lambda: (tmp_path / name).write_text(FILES[name]), daemon=True)
    writer.start()
    assert [row.values["text"] for row in read(str(tmp_path / name))] == ["first text", "second, “text”"]
    writer.join(10)
    assert not writer.is_alive()


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "json", "txt"])
def test_it_is_said_before_more_is_waited_for(tmp_path: Path, format: str) -> None:
    """Each row of a slow pipe is there before the next is written."""
    lines = {"txt": ["one\n", "two\n"], "csv": ["text\none\n", '"two"\n'], "tsv": ["text\none\n", "two\n"]}
    first, second = lines.get(format, ['{"text": "one"}\n', '{"text": "two"}\n'])
    reading, writing = os.pipe()
    os.write(writing, first.encode())
    found: list[str] = []
    seen: list[list[str]] = []

    def before_wait() -> None:
        seen.append(list(found))
        if len(seen) == 1:
            os.write(writing, second.encode())
        elif len(seen) == 2:
            os.close(writing)

    input = Input(f"/dev/fd/{reading}", format)  # type: ignore[arg-type]
    for row in input.table(["text"], None, before_wait).rows:
        found.append(row.values["text"])
    assert found == ["one", "two"] and seen[-1] == ["one", "two"] and (seen[0] == ["one"] or format == "json")
    os.close(reading)


def test_a_source_that_fails_is_named() -> None:
    with pytest.raises(UserError, match=r"/proc/self/mem: cannot be read"), Source("/proc/self/mem").opened() as file:
        file.read(1)


def test_rows_come_one_at_a_time(tmp_path: Path) -> None:
    """Nothing is read ahead: what comes of a program that never ends is read."""
    program = subprocess.Popen(["yes", "one text"], stdout=subprocess.PIPE)
    assert program.stdout is not None
    rows = iter(Input(f"/dev/fd/{program.stdout.fileno()}", "txt").table(["text"], None, lambda: None).rows)
    assert [next(rows).values["text"] for _ in range(1000)] == ["one text"] * 1000
    program.kill()
    program.wait()
