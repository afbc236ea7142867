"""Rows that are taken, with a word on them."""

import pytest

from pipeline.data.config import DataConfig
from pipeline.data.doubts import is_invisible
from pipeline.data.sources import read_split


def warnings(tmp_path, name, content, **keys):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return read_split(str(path), "train", DataConfig(train=str(path), **keys), tmp_path / "rows.arrow").warnings


@pytest.mark.parametrize("text", ["\u200b", "\u200d\u200c\u2060", "\ufeff \u00ad", "\u2800", "\u3164", "\x01"])
def test_texts_of_which_nothing_is_seen_are_counted(tmp_path, text):
    (warning,) = warnings(tmp_path, "a.tsv", f"text\tlabel\na\tx\n{text}\ty\n{text}{text}\ty\n")
    assert "2 row(s) (row 2 (line 3); row 3 (line 4))" in warning and "without a visible character" in warning


@pytest.mark.parametrize("text", ["a\u200b", "…", "👩‍👩‍👧", "कि", "\u0301", "\ue000x"])
def test_texts_of_which_something_is_seen_are_not(text):
    assert not is_invisible(text)


def test_a_quoted_tsv_is_noticed_and_the_key_is_named(tmp_path):
    content = 'text\tlabel\n"one ""two"""\tx\nthree\tx\n"four"\ty\n"\ty\n'
    (warning,) = warnings(tmp_path, "a.tsv", content)
    assert "2 row(s) (row 1 (line 2); row 3 (line 4))" in warning and "data.quoting=true" in warning
    assert warnings(tmp_path, "b.tsv", content.replace('\n"\t', "\nfive\t"), quoting=True) == []
    assert warnings(tmp_path, "c.csv", 'text,label\n"""Go!""",x\n"b",y\n') == []
    assert "look quoted" in warnings(tmp_path, "d.csv", 'text,label\n"a",x\nb,y\n', quoting=False)[0]


def test_equal_texts_with_different_labels_are_named(tmp_path):
    rows = ["Good film\tx", "bad\ty", "good film!\ty", "bad\ty", "ugly\tx", "ugly\ty", "ugly\tz"]
    (warning,) = warnings(tmp_path, "a.tsv", "text\tlabel\n" + "\n".join(rows) + "\n")
    assert "2 texts of" in warning and "with different labels" in warning
    assert "rows 1 and 3" in warning and "rows 5 and 6" in warning
    assert warnings(tmp_path, "b.tsv", "text\tlabel\na\tx\na\tx\nb\ty\n") == []
