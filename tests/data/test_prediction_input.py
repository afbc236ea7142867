"""Texts from every format, and errors that name the line."""

import io
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.data.prediction_input import TextRow, read_texts


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "first text\nsecond, “text”"),
        ("a.csv", 'id,text\n1,first text\n2,"second, “text”"\n'),
        ("a.tsv", "text\tid\r\nfirst text\t1\r\nsecond, “text”\t2\r\n"),
        ("a.jsonl", '{"text": "first text"}\n{"id": 3, "text": "second, “text”"}\n'),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, content: str) -> None:
    for prefix in ("", "\ufeff"):  # a byte-order mark is no part of the first text
        rows = list(read_texts(write(tmp_path / name, prefix + content), "text", None))
        assert [row.text for row in rows] == ["first text", "second, “text”"]


def test_pairs(tmp_path: Path) -> None:
    expected = [("a b", "c"), ("d", "e f")]
    plain = write(tmp_path / "a.txt", "a b\tc\nd\te f\n")
    table = write(tmp_path / "a.csv", "two,one\nc,a b\ne f,d\n")
    assert [row.inputs for row in read_texts(plain, "one", "two")] == expected
    assert [row.inputs for row in read_texts(table, "one", "two")] == expected


def test_quoted_field_over_two_lines_and_literal_quotes(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", 'text\n"one\ntwo"\nthree\n')
    assert list(read_texts(table, "text", None)) == [TextRow(3, "one\ntwo"), TextRow(4, "three")]
    assert next(read_texts(write(tmp_path / "a.tsv", 'text\n"one\n'), "text", None)).text == '"one'
    quoted = write(tmp_path / "b.tsv", 'id\ttext\n1\t"one\ttwo"\n')
    assert next(read_texts(quoted, "text", None, quoted=True)).text == "one\ttwo"


def test_standard_input_is_one_text_per_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert [row.text for row in read_texts("-", "text", None)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "one\n \ntwo\n", "line 2: the text is empty"),
        ("a.txt", b"one\n\xff\xfe\n", "line 2: not UTF-8"),
        ("a.txt", "", "holds no text"),
        ("a.csv", "", "holds no text"),
        ("a.csv", "text\n", "holds no text"),
        ("a.csv", "id,body\n1,b\n", r"no column 'text' \(columns: id, body\)"),
        ("a.csv", "id,text\n1,b\n2\n", "line 3: 1 fields, the header has 2"),
        ("a.csv", 'text\n"open\n', "line 2: "),
        ("a.csv", "text\none\n\n", "line 3: the text is empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', "line 2: no string under 'text'"),
        ("a.jsonl", '{"text": "a"}\nnot json\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: a JSON list where an object is needed"),
        ("a.jsonl", '{"text": "a"}\n\n', "line 2: the text is empty"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1: the key 'text' is there twice"),
        ("a.jsonl", '{"text": "a"} {"text": "b"}\n', "line 1: not one JSON object"),
        ("a.csv", "text,id,text\na,1,b\n", "column 'text' is there 2 times"),
        ("a.pdf", "x", "unknown ending"),
    ],
)
def test_faults_name_their_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_texts(write(tmp_path / name, content), "text", None))


def test_missing_file_and_missing_tab(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(read_texts(str(tmp_path / "none.txt"), "text", None))
    with pytest.raises(UserError, match="line 1: expected two texts separated by one tab"):
        list(read_texts(write(tmp_path / "a.txt", "only one\n"), "text", "other"))


def test_rows_come_one_at_a_time(tmp_path: Path) -> None:
    """A fault far down does not keep the rows before it: nothing is read ahead."""
    rows = read_texts(write(tmp_path / "a.txt", "one\n" * 50_000 + "\n"), "text", None)
    assert next(rows).text == "one"
    with pytest.raises(UserError, match="line 50001"):
        list(rows)
