"""Labelled rows of files, hub folders and the embedded set; every fault with its row.

covers core/errors, data/checks, data/hub, data/labelled
"""

import os

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from pipeline.core.errors import UserError, nearest, some
from pipeline.data.config import DataConfig
from pipeline.data.sources import EMBEDDED, overlap, read_split, split_file


def read(tmp_path, source, **keys):
    tmp_path.mkdir(exist_ok=True)
    return read_split(str(source), "train", DataConfig(train=str(source), **keys), tmp_path / "rows.arrow")


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def test_rows_keep_their_numbers_and_labels_their_places(tmp_path):
    split = read(tmp_path, write(tmp_path / "a.tsv", "label\ttext\nx\tone\n\ny\ttwo\n x \tthree\n"))
    assert split.rows[:] == {"row": [1, 2, 3], "text": ["one", "two", "three"], "label": ["x", "y", "x"]}
    assert split.labels.seen["x"].count == 2 and split.labels.seen["x"].places == ["row 1 (line 2)", "row 3 (line 5)"]


def test_pairs_and_other_column_names(tmp_path):
    file = write(tmp_path / "a.csv", "premise,hypothesis,extra,gold\na,b,-,1\n")
    split = read(tmp_path, file, text="premise", text_pair="hypothesis", label="gold")
    assert split.rows[:] == {"row": [1], "text": ["a"], "text_pair": ["b"], "label": ["1"]}


def test_faults_of_all_kinds_are_gathered(tmp_path):
    rows = ["a\tx", "\tx", "a", "b\t ", "  \ty", "a\tx\ty", "\u3000\tx"]
    with pytest.raises(UserError) as fault:
        read(tmp_path, write(tmp_path / "a.tsv", "text\tlabel\n" + "\n".join(rows)))
    message = str(fault.value)
    assert "6 of 7 rows are faulty" in message and "\n" not in message
    assert "row 2 (line 3): 'text' is empty; row 3 (line 4): 1 fields" in message
    assert "row 4 (line 5): no label in 'label'; and 3 more" in message


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ('{"text": null, "label": 1}', "'text' is null, not a string"),
        ('{"text": 5, "label": 1}', "'text' is int, not a string"),
        ('{"label": 1}', "no field 'text'"),
        ('{"text": "a"}', "no label in 'label'"),
        ('{"text": "a", "label": null}', "no label in 'label'"),
        ('{"text": "a", "label": 1.5}', "the label 1.5 is neither a string nor an integer"),
        ('{"text": "a", "label": ["x"]}', "is neither a string nor an integer"),
        ('{"text": "a", "label": NaN}', "no label in 'label'"),
        ('{"text": "a", "label": Infinity}', "the label inf is neither a string nor an integer in 'label'"),
        ('{"text": NaN, "label": 1}', "'text' is float, not a string"),
        ('{"text": "a\\ud800", "label": 1}', "'text' holds half a character at position 1"),
        ('{"text": "a", "label": "\\ud800"}', "'label' holds half a character"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(tmp_path, record, complaint):
    content = '{"text": "fine", "label": 0}\n' + record
    with pytest.raises(UserError, match="1 of 2 rows are faulty: row 2") as fault:
        read(tmp_path, write(tmp_path / "a.jsonl", content))
    assert complaint in str(fault.value)


def test_integers_and_whole_floats_become_strings(tmp_path):
    pd.DataFrame({"text": ["a", "b"], "label": [1.0, 0.0]}).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path, tmp_path / "a.parquet").rows["label"][:] == ["1", "0"]
    file = write(tmp_path / "a.json", '[{"text": "a", "label": 3}, {"text": "b", "label": "3"}]')
    assert read(tmp_path, file).labels.seen["3"].count == 2


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    with pytest.raises(
        UserError, match=r"no column 'texts' \(data.text\) \(nearest: 'text'\); columns: 'text', 'label'"
    ):
        read(tmp_path, write(tmp_path / "a.csv", "text,label\na,b\n"), text="texts")


def test_all_missing_columns_are_named_and_another_separator_is_guessed(tmp_path):
    with pytest.raises(UserError, match=r"no column 'Text' .*, no column 'class' \(data.label\); columns: [^:]*$"):
        read(tmp_path, write(tmp_path / "a.csv", "text,label\na,b\n"), text="Text", label="class")
    for name, header in (("a.csv", "text;label"), ("b.csv", "text\tlabel"), ("c.tsv", "text,label")):
        with pytest.raises(UserError, match="a csv has commas between its columns, a tsv has tabs"):
            read(tmp_path, write(tmp_path / name, f"{header}\na;b\n"))


@pytest.mark.parametrize("content", ["text,label\n", "text,label\n\n\n"])
def test_no_rows(tmp_path, content):
    with pytest.raises(UserError, match="no rows"):
        read(tmp_path, write(tmp_path / "a.csv", content))


def test_a_text_column_given_as_label_is_noticed(tmp_path):
    content = "text\tlabel\n" + "".join(f"a\tanswer {n}\n" for n in range(10_001))
    with pytest.raises(UserError, match="more than 10000 different values"):
        read(tmp_path, write(tmp_path / "a.tsv", content))


def test_overlap_ignores_case_and_punctuation_and_takes_pairs_together(tmp_path):
    first = read(tmp_path / "1", write(tmp_path / "a.tsv", "text\tlabel\nHello, World!\tx\n...\tx\nGrüße\tx\n"))
    second = read(tmp_path / "2", write(tmp_path / "b.tsv", "text\tlabel\nnew\tx\nhello world\tx\n???\tx\ngrüße.\tx\n"))
    assert overlap(first, second) == [1, 3]
    pair = read(tmp_path / "3", write(tmp_path / "c.tsv", "text\tto\tlabel\nab\tc\tx\n"), text_pair="to")
    other = read(tmp_path / "4", write(tmp_path / "d.tsv", "text\tto\tlabel\na\tbc\tx\n"), text_pair="to")
    assert overlap(pair, other) == []
    assert pair.text_hashes.dtype == np.uint64 and len(pair.text_hashes) == 1


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    return f"hub:{tmp_path / 'set'}"


def test_hub_data_sets_are_read_with_their_label_names(tmp_path, hub_folder):
    split = read(tmp_path, f"{hub_folder}:train", text="sentence")
    assert split.rows["text"][:] == ["a", "b", "c"] and split.rows["label"][:] == ["good", "bad", "good"]
    assert split.labels.own_names == ["bad", "good"]
    assert len(read(tmp_path / "cut", f"{hub_folder}:default:train[:2]", text="sentence").rows) == 2


def test_a_hub_folder_whose_files_name_the_ids_otherwise_is_refused(tmp_path, hub_folder):
    """`datasets` takes the names of the first file for all of them."""
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    test = Dataset.from_dict({"sentence": ["d"], "label": [0]}, features=features)
    test.to_parquet(tmp_path / "set" / "test.parquet")
    with pytest.raises(UserError, match=r"set/test.parquet names the ids of 'label' otherwise than .* give the file"):
        read(tmp_path, f"{hub_folder}:test", text="sentence")
    assert read(tmp_path, tmp_path / "set" / "test.parquet", text="sentence").rows["label"][:] == ["good"]


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_fields_of_a_hub_csv_stay_as_they_are_written(tmp_path, hub_folder, ending, separator):
    """`datasets` alone makes 1 of "01", and no label of "NA"; in tsv a quote that is not closed took all behind it."""
    lines = [["sentence", "label"], ["12", "01"], ["None", "NA"], ["c", "1"]]
    if ending == "tsv":
        lines.append(['"never closed', "01"])
    (tmp_path / "csv").mkdir()
    file = write(tmp_path / "csv" / f"train.{ending}", "".join(separator.join(line) + "\n" for line in lines))
    hub, plain = (read(tmp_path / "read", x, text="sentence").rows[:] for x in (f"hub:{file.parent}:train", file))
    assert hub == plain and hub["label"][:3] == ["01", "NA", "1"] and hub["text"][:2] == ["12", "None"]


def test_a_hub_file_that_changed_is_read_again_though_its_time_is_the_old_one(tmp_path, hub_folder):
    """As where a newer archive is unpacked over it; `datasets` alone gives what it prepared before."""
    for text in ("first", "second and longer"):
        file = write(tmp_path / "set" / "train.csv", f"sentence,label\n{text},x\n")
        (tmp_path / "set" / "train.parquet").unlink(missing_ok=True)
        os.utime(file, (0, 0))
        assert read(tmp_path / text, f"{hub_folder}:train", text="sentence").rows["text"][:] == [text]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_saved_data_set_whose_splits_name_the_ids_otherwise_is_refused(tmp_path, monkeypatch, as_file):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits = {"train": ["bad", "good"], "test": ["good", "bad"]}
    saved = DatasetDict()
    for split, names in splits.items():
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        saved[split] = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    saved.save_to_disk(tmp_path / "set")
    for file in (tmp_path / "set").rglob("*.arrow") if as_file else ():
        table = Dataset.from_file(str(file)).data.table
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=r"set/test/.*\.arrow names the ids of 'label' otherwise than"):
        read(tmp_path, f"hub:{tmp_path / 'set'}:test")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{set}:validation", "the data set cannot be loaded: Unknown split"),
        ("{set}:none:train", "the data set cannot be loaded: BuilderConfig 'none' not found"),
        ("{set}", "is not a hub data set: write hub:NAME:SPLIT"),
        ("hub:/no/such/folder:train", "the data set cannot be loaded"),
    ],
)
def test_hub_faults_take_one_line(tmp_path, hub_folder, source, complaint):
    with pytest.raises(UserError, match=complaint) as fault:
        read(tmp_path, source.replace("{set}", hub_folder), text="sentence")
    assert "\n" not in str(fault.value)


def test_embedded_is_the_shipped_file_of_the_same_split():
    assert split_file("embedded", "validation") == EMBEDDED / "validation.tsv"
    assert split_file("hub:a:train", "train") is None


def test_some_counts_the_rest():
    assert some(["a", "b"]) == "a; b"
    assert some(["a", "b", "c"], 10) == "a; b; c; and 7 more"


def test_nearest_disregards_letter_case():
    assert nearest("SPORT", ["music", "sport"]) == " (nearest: 'sport')" and nearest("x", ["music"]) == ""
