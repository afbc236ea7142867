"""What is written into a csv, tsv, json, jsonl or parquet file is read again, or refused with its place.

covers data/json_objects, data/columnar, data/rows
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.readers import open_file


def read(path, content, quoting=None):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = open_file(path, quoting, ["text"], "label")
    return table, list(table.rows)


# No carriage return: in an unquoted file it ends a line.
plain_text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\t\n\r"), max_size=12)
any_text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.lists(st.tuples(plain_text, plain_text), min_size=1))
@reuse_folder
def test_unquoted_tsv_gives_every_field_back(tmp_path, fields):
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in fields)
    _, rows = read(tmp_path / "a.tsv", content)
    assert [(row.values["text"], row.values["label"]) for row in rows] == fields
    assert [(row.number, row.line) for row in rows] == [(n, n + 1) for n in range(1, len(fields) + 1)]


@given(st.lists(st.tuples(any_text, any_text), min_size=1))
@reuse_folder
def test_quoted_csv_gives_every_field_back(tmp_path, fields):
    def quoted(field):
        return '"' + field.replace('"', '""') + '"'

    content = "text,label\n" + "".join(f"{quoted(text)},{quoted(label)}\n" for text, label in fields)
    _, rows = read(tmp_path / "a.csv", content)
    assert [(row.fault, row.values.get("text"), row.values.get("label")) for row in rows] == [
        (None, *pair) for pair in fields
    ]


@given(st.lists(st.dictionaries(any_text, st.none() | st.integers() | any_text | st.lists(any_text)), min_size=1))
@reuse_folder
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_gives_every_object_back(tmp_path, suffix, objects):
    whole = "\n".join(map(json.dumps, objects)) if suffix == "jsonl" else json.dumps(objects, indent=1)
    _, rows = read(tmp_path / f"a.{suffix}", whole)
    assert [(row.number, row.values) for row in rows] == list(enumerate(objects, 1))


def test_json_array_longer_than_a_chunk(tmp_path):
    objects = [{"text": "ä" * (n % 977), "label": n} for n in range(6000)]
    table, rows = read(
        tmp_path / "a.json", "\n [" + ",\n".join(json.dumps(o, ensure_ascii=False) for o in objects) + "]\n"
    )
    assert [row.values for row in rows] == objects and table.columns == ["text", "label"]


def test_json_lines_may_be_called_json(tmp_path):
    _, rows = read(tmp_path / "a.json", '{"text": "x"}\n\n{"text": "y"}\n')
    assert [(row.number, row.line, row.values["text"]) for row in rows] == [(1, 1, "x"), (2, 3, "y")]


@pytest.mark.parametrize(
    ("name", "content", "place", "complaint"),
    [
        ("a.tsv", "text\tlabel\na\tb\nc\n", "row 2 (line 3)", "1 fields where the header has 2"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", "row 1 (line 2)", "3 fields where the header has 2"),
        ("a.tsv", b"text\tlabel\na\tb\n\xff\tc\n", "row 2 (line 3)", "byte 0xff on line 3 is not UTF-8"),
        ("a.csv", 'text,label\n"a\nb",c\nd\n', "row 2 (line 4)", "1 fields where the header has 2"),
        ("a.csv", 'text,label\na,b\n"c,d\n', "row 2 (line 3)", "is a quote not closed"),
        ("a.csv", 'text,label\n"a"b,c\n', "row 1 (line 2)", "expected after"),
        ("a.csv", b'text,label\na,b\n"c\n\xe4",d\n', "row 2 (line 3)", "byte 0xe4 on line 4 is not UTF-8"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "row 2 (line 2)", "not JSON ("),
        ("a.jsonl", '{"a": 1}\n[1]\n', "row 2 (line 2)", "a JSON list where an object is needed"),
        ("a.jsonl", "[" * 100_000 + "\n", "row 1 (line 1)", "not JSON ("),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe4"}\n', "row 2 (line 2)", "byte 0xe4 on line 2 is not UTF-8"),
        ("a.json", '[{"a": 1}, {"a": }]', "row 2", "no JSON from here on"),
        ("a.json", '[{"a": 1}, {"a": 2}', "row 2", "the array is not closed"),
        ("a.json", '[{"a": 1}, 5]', "row 2", "a JSON int where an object is needed"),
        ("a.json", '[{"a": 1}][{"a": 2}]', "row 2", "the array ends here, but '[{\"a\": 2}]' follows"),
        ("a.json", '[{"a": 1}]\n \n{"a": 2}\n', "row 2", "the array ends here, but '{\"a\": 2}' follows"),
        ("a.json", '[{"a": 1}]' + " " * 2**21 + "x", "row 2", "the array ends here, but 'x' follows"),
        ("a.json", "[]x", "row 1", "the array ends here"),
        ("a.json", '[{"a": 1}, {"text": "a", "text": "b"}]', "row 2", "the key 'text' is there twice"),
        ("a.jsonl", '{"a": 1}\n{"a": 2} {"a": 3}\n', "row 2 (line 2)", "character 9 on goes on with ' {\"a\": 3}'"),
        ("a.jsonl", '{"a": 1}\n{"a": 2},\n', "row 2 (line 2)", "not one JSON object"),
        ("a.jsonl", '{"a": 1}\n{"label": 1, "label": 1}\n', "row 2 (line 2)", "the key 'label' is there twice"),
    ],
)
def test_a_row_that_does_not_parse_is_placed(tmp_path, name, content, place, complaint):
    _, rows = read(tmp_path / name, content)
    faults = [row for row in rows if row.fault]
    assert len(faults) == 1 and faults[0].place == place and complaint in faults[0].fault


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.tsv", "", "the file is empty"),
        ("a.txt", "x", "unknown file type"),
        ("a.csv", "text,text\n", "column 'text' is there 2 times: rename or remove all but one"),
        ("a.tsv", "text\tlabel\tlabel\n", "column 'label' is there 2 times"),
        ("a.csv", "text,label\n".encode("utf-16"), "the header cannot be read: byte 0xff"),
        ("a.json", b'[{"a": "x"},\n {"a": "\xe4"}]', "byte 0xe4 on line 2 is not UTF-8"),
        ("a.parquet", "PAR1 but not really", "is not a readable parquet file"),
        ("a.tsv", "text\tlabel\n" + "x" * 17_000_000, "line 2 is longer than 16 MiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, content, complaint):
    with pytest.raises(UserError, match=complaint):
        read(tmp_path / name, content)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_file(tmp_path / "a.csv", None, ["text"], "label")
    with pytest.raises(UserError, match="is a folder"):
        open_file(tmp_path, None, ["text"], "label")


def test_quoting_is_by_file_type_unless_said(tmp_path):
    for name, delimiter in [("a.csv", ","), ("a.tsv", "\t")]:
        content = f'text{delimiter}label\n"x"{delimiter}y\n'
        by_setting = {
            quoting: read(tmp_path / name, content, quoting)[1][0].values["text"] for quoting in (None, True, False)
        }
        assert by_setting == {None: "x" if name == "a.csv" else '"x"', True: "x", False: '"x"'}


def test_byte_order_mark_line_ends_and_blank_lines(tmp_path):
    content = b"\xef\xbb\xbftext,label\r\na,b\r\n\r\nc,d\r\n\r\n"
    for quoting in (True, False):
        table, rows = read(tmp_path / "a.csv", content, quoting)
        assert table.columns == ["text", "label"]
        assert [(row.number, row.line, row.values) for row in rows] == [
            (1, 2, {"text": "a", "label": "b"}),
            (2, 4, {"text": "c", "label": "d"}),
        ]


def test_a_quoted_empty_cell_is_a_row_and_a_blank_line_is_none(tmp_path):
    """Where it is the row's only cell. pandas writes empty and missing texts so."""
    (tmp_path / "a.csv").write_text('text\na\n""\n\nb\n')
    rows = list(open_file(tmp_path / "a.csv", None, ["text"], None).rows)
    assert [(row.number, row.line, row.values) for row in rows] == [
        (1, 2, {"text": "a"}),
        (2, 3, {"text": ""}),
        (3, 5, {"text": "b"}),
    ]
    _, rows = read(tmp_path / "b.csv", 'text,label\n""\na,b\n')
    assert [row.fault for row in rows] == ["1 fields where the header has 2", None]


def test_parquet_with_names_of_integer_labels(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    table = open_file(tmp_path / "a.parquet", None, ["text"], "label")
    assert table.label_names == ["no", "yes"] and table.columns == ["text", "label"]
    assert [row.values for row in table.rows] == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


def test_parquet_row_that_is_not_utf8_is_placed(tmp_path):
    texts = pa.array([b"ok"] * 300 + [b"\xff"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    rows = list(open_file(tmp_path / "a.parquet", None, ["text"], "label").rows)
    assert len(rows) == 301 and rows[299].values == {"text": "ok"}
    assert [(row.place, row.fault) for row in rows if row.fault] == [("row 301", "is not UTF-8")]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.tsv", "text\tlabel\na\tb\ntext\tlabel\nc\td\n", 3),
        ("a.csv", "text,label\n\ufefftext,label\na,b\n", 2),
        ("a.csv", 'text,label\na,b\n"text","label"\n', 3),
    ],
)
def test_a_header_in_the_middle_is_a_fault(tmp_path, name, content, line):
    _, rows = read(tmp_path / name, content)
    assert [row.line for row in rows if row.fault and row.fault.startswith("is the header again")] == [line]


def test_a_lone_column_may_hold_its_own_name(tmp_path):
    (tmp_path / "a.csv").write_text("text\ntext\n")
    assert [row.values for row in open_file(tmp_path / "a.csv", None, ["text"], "label").rows] == [{"text": "text"}]


@pytest.mark.parametrize(
    ("name", "content", "ends"),
    [
        ("a.csv", 'text,label\n"open,b\nc,d\n', True),
        ("a.csv", 'text,label\n"a"b,c\nd,e\n', False),
        ("a.json", '[{"text": 1}, {"text": }, {"text": 2}]', True),
        ("a.json", '[{"text": 1}] {"text": 2}', True),
        ("a.jsonl", '{"text": }\n{"text": 2}', False),
    ],
)
def test_a_fault_behind_which_nothing_can_be_read_says_so(tmp_path, name, content, ends):
    fault = next(row for row in read(tmp_path / name, content)[1] if row.fault)
    assert fault.ends is ends and ("lines 2 to 3 are lost" in fault.fault) is (ends and name == "a.csv")


@pytest.mark.parametrize("name", ["text", "label"])
def test_parquet_with_a_column_twice_is_refused(tmp_path, name):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.table(columns, names=["text", "label", name]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"column '{name}' is there 2 times"):
        open_file(tmp_path / "a.parquet", None, ["text"], "label")


def test_columns_that_are_not_wanted_do_no_harm(tmp_path):
    names = ["label", "extra", "extra", "map", "text", "a.b", "null"]
    unread = pa.array([b"\xff"], pa.binary()).view(pa.string())
    columns = [pa.array([1]), pa.array([0]), unread, pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))]
    columns += [pa.array(["x"]), pa.array([{"c": 1}]), pa.nulls(1)]
    pq.write_table(pa.table(columns, names=names), tmp_path / "a.parquet")
    table = open_file(tmp_path / "a.parquet", None, ["text"], "label")
    assert table.columns == names and [row.values for row in table.rows] == [{"label": 1, "text": "x"}]
    _, rows = read(tmp_path / "a.csv", "text,,label,\nx,1,y,2\n")
    assert (rows[0].values["text"], rows[0].values["label"]) == ("x", "y")
    _, rows = read(tmp_path / "a.jsonl", '{"text": "x", "other": {"text": 1, "text": 2}, "n": NaN, "n": 0}')
    assert rows[0].fault is None and rows[0].values["text"] == "x"


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32()])
def test_parquet_ids_keep_their_names_in_every_type(tmp_path, kind):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no ", "yes"])})
    ids = pa.table({"text": ["a"], "label": pa.array([1]).cast(kind)})
    pq.write_table(ids.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "a.parquet")
    assert open_file(tmp_path / "a.parquet", None, ["text"], "label").label_names == ["no", "yes"]
    assert open_file(tmp_path / "a.parquet", None, ["label"], "text").label_names is None
