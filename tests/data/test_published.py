"""Published files, as each of the nine sets has them, and the tables that they become.

covers data/public_sets, data/published
"""

import re

import pytest

from pipeline.core.errors import UserError
from pipeline.data.public_sets import PUBLIC_SETS, Form
from pipeline.data.published import LONGEST, Row, read_published, split_rows

CASES: dict[Form, tuple[str, list[Row]]] = {
    "sst2": ('a "fine"  film\t1\ndull\t0\n', [('a "fine" film', "positive"), ("dull", "negative")]),
    "cola": ("gj04\t1\t\tIt fell.\ngj04\t0\t*\tFell it.\n", [("It fell.", "acceptable"), ("Fell it.", "unacceptable")]),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\n",
        [("A.", "B.", "not entailment"), ("C.", "D.", "entailment")],
    ),
    "agnews": (
        '"3","Oil ""up""","Again\\today"\n"1","War","Over"\n',
        [('Oil "up" Again today', "Business"), ("War Over", "World")],
    ),
    "agnews_sample": ('text,label\n"Oil, up",2\nGoal,1\n', [("Oil, up", "Business"), ("Goal", "Sports")]),
    "banking77": (
        'text,category\n"Where, please?",card_arrival\nRefund?,Refund_not_showing_up\nA,b?\n',
        [("Where, please?", "card arrival"), ("Refund?", "Refund not showing up"), ("A", "b")],
    ),
    "masakhanews": (
        'category\theadline\ttext\turl\nsports\tGoal\t"He said ""yes"".\nTwice"\thttp://x\n',
        [('Goal He said "yes". Twice', "sports")],
    ),
}


@pytest.mark.parametrize("form", CASES)
def test_rows_are_read_as_they_were_published(form: Form) -> None:
    text, rows = CASES[form]
    assert read_published(text.encode(), form, "x") == rows


def test_news_are_cut_at_a_blank() -> None:
    text = "category\theadline\ttext\turl\nsports\tGoal\t" + "word " * 1000 + "\thttp://x\n"
    [(kept, _)] = read_published(text.encode(), "masakhanews", "x")
    assert LONGEST - 5 <= len(kept) <= LONGEST and kept.endswith("word")


@pytest.mark.parametrize("form", CASES)
@pytest.mark.parametrize("content", [b"", b"<html>404</html>\n", b"\xff\xfe\x00", b"a\tb\tc\td\te\tf\tg\n"])
def test_another_file_is_refused(form: Form, content: bytes) -> None:
    with pytest.raises(UserError, match=r"raw/x is not the published file .*: remove it, and fetch it again"):
        read_published(content, form, "raw/x")


def test_no_text_is_in_two_splits() -> None:
    given = PUBLIC_SETS["sst2"]
    train = [("One two!", "a"), ("one  TWO", "a"), ("three", "b"), ("four", "a"), ("five", "b")]
    found = split_rows(given, [train, [("Three.", "b"), ("six", "a")], [("four", "a"), ("Four", "a")]])
    assert found["test"] == [("four", "a"), ("Four", "a")], "as published"
    assert found["validation"] == [("Three.", "b"), ("six", "a")]
    assert found["train"] == [("One two!", "a"), ("five", "b")]


def test_validation_is_cut_where_none_is_published_and_premises_stay_together() -> None:
    given = PUBLIC_SETS["rte"]
    train = [(f"premise {n // 2}", f"hypothesis {n}", "ab"[n % 2]) for n in range(2500)]
    found = split_rows(given, [train, [("premise x", "hypothesis x", "a")]])
    assert abs(len(found["validation"]) - given.cut) <= 4 and len(found["train"]) + len(found["validation"]) == 2500
    assert not {row[0] for row in found["train"]} & {row[0] for row in found["validation"]}
    assert found == split_rows(given, [train, [("premise x", "hypothesis x", "a")]]), "the same every time"


def test_the_nine_sets_are_named_at_commits_with_licence_and_citation() -> None:
    assert len(PUBLIC_SETS) == 9
    for given in PUBLIC_SETS.values():
        assert given.about and given.licence and re.search(r"\b(19|20)\d\d\b", given.citation)
        assert {source.split for source in given.files} | ({"validation"} if given.cut else set()) == {
            "train",
            "validation",
            "test",
        }
        for source in given.files:
            assert re.fullmatch(r"[\w-]+/[\w-]+/[0-9a-f]{40}/[\w/.-]+\.(tsv|csv)", source.path)
