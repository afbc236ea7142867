"""Whether an artefact is current: the one rule, on fingerprints of any stage."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import artefact as module
from pipeline.core.artefact import Artefact, defaults_of, differences, sha256_of, within
from pipeline.core.checksums import write_sums
from pipeline.core.errors import UserError
from pipeline.core.settings import Settings

TEXTS = st.dictionaries(st.sampled_from("abcd"), st.text(max_size=80))


class Old(Settings):
    rate: float = 0.1


class New(Old):
    momentum: float = 0.9


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_hashes_tell_lists_of_strings_apart(first: list[str], second: list[str]) -> None:
    assert (sha256_of(*first) == sha256_of(*second)) == (first == second)


@given(TEXTS, TEXTS)
def test_differences_name_every_part_that_changed(old: dict[str, str], new: dict[str, str]) -> None:
    phrases = differences(old, new)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    assert [phrase.split(" was ")[0] for phrase in phrases] == changed


@given(TEXTS, TEXTS, TEXTS)
def test_the_lack_of_a_part_stands_for_its_default(
    old: dict[str, str], new: dict[str, str], absent: dict[str, str]
) -> None:
    whole = differences({**absent, **old}, {**absent, **new})
    assert differences(old, new, absent) == whole
    assert differences(old, {**absent, **old}, absent) == [] == differences({**absent, **old}, old, absent)


def test_differences_are_readable() -> None:
    old, new = {"revision": "a", "weights": "0123456789abcdef" * 5}, {"revision": "b", "dtype": "float32"}
    assert differences(old, new) == [
        "dtype was absent, now 'float32'",
        "revision was 'a', now 'b'",
        "weights was '0123456789ab…', now absent",
    ]
    assert differences(old, json.loads(json.dumps(old))) == []


def test_a_key_that_a_release_adds_changes_nothing_at_its_default_and_is_named_otherwise() -> None:
    old, absent = {"train.rate": "0.1"}, defaults_of(train=New)
    for momentum, said in ((0.9, []), (0.5, ["train.momentum was '0.9', now '0.5'"])):
        new = {f"train.{key}": str(value) for key, value in New(momentum=momentum).model_dump().items()}
        assert differences(old, new, absent) == said
        inside = [f"data: {phrase}" for phrase in said]
        assert differences(within("data", old), within("data", new), within("data", absent)) == inside
    assert differences(old, {"train.rate": "0.2"}, absent) == ["train.rate was '0.1', now '0.2'"]


def test_a_key_that_a_release_takes_away_changes_nothing_where_it_was_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = {"train.rate": "0.1", "train.momentum": "0.9"}, {"train.rate": "0.1"}
    assert differences(old, new, defaults_of(train=Old)) == ["train.momentum was '0.9', now absent"]
    monkeypatch.setattr(module, "RETIRED", {"train.momentum": "0.9"})
    assert differences(old, new, defaults_of(train=Old)) == []
    assert differences({**old, "train.momentum": "0"}, new) == ["train.momentum was '0', now '0.9'"]


def test_a_default_that_a_release_changes_is_a_change() -> None:
    """Which is why fingerprints hold values at their defaults, too."""
    assert differences({"train.rate": "0.2"}, {"train.rate": str(Old().rate)}, defaults_of(train=Old)) != []


def test_a_part_that_nobody_knows_is_not_compared_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artefact = Artefact(tmp_path, "encode-labels", {"weights": None})
    assert artefact.is_current({"seed": "1"}, {"seed": "1", "weights": "abc"})
    assert f"{tmp_path}: made by an older version, which did not keep 'weights'" in caplog.text
    assert artefact.changes({"seed": "1"}, {"seed": "2", "weights": "abc"}) == ["seed was '1', now '2'"]
    assert artefact.changes({"weights": "abc"}, {"weights": "abd"}) == ["weights was 'abc', now 'abd'"]


def test_a_format_that_is_raised_makes_stale_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    artefact = Artefact(tmp_path, "train")
    assert artefact.is_current({"seed": "1"}, {"seed": "1", "format": "1"}), "the first, where none is said"
    with caplog.at_level(logging.INFO, "pipeline"):
        assert not artefact.is_current({"seed": "1"}, {"seed": "1", "format": "2"})
    assert f"train: {tmp_path} is stale (format was '1', now '2'), made again" in caplog.text
    with pytest.raises(UserError, match="was made otherwise: format was '2', now '3'; run train again"):
        artefact.check({"format": "2"}, {"format": "3"})


def test_an_upgrade_is_asked_only_where_the_format_alone_differs(tmp_path: Path) -> None:
    asked = []
    artefact = Artefact(tmp_path, "preprocess", upgrades={"1": lambda: asked.append(1)})
    assert artefact.changes({"seed": "1"}, {"seed": "2", "format": "2"}) == ["seed was '1', now '2'"]
    assert artefact.changes({"format": "2"}, {"format": "2"}) == [] and not asked
    assert artefact.changes({"seed": "1"}, {"seed": "1", "format": "2"}) == [] and asked

    def refuse() -> None:
        raise UserError("it means something else today")

    with pytest.raises(UserError, match="something else today"):
        Artefact(tmp_path, "preprocess", upgrades={"1": refuse}).changes({}, {"format": "2"})


def test_damage_is_found_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_text("a")
    write_sums(tmp_path)
    artefact = Artefact(tmp_path, "preprocess")
    assert artefact.found((tmp_path / "a").read_text) == "a" and not caplog.text
    (tmp_path / "a").write_text("b")
    assert artefact.found((tmp_path / "a").read_text) is None
    assert "preprocess: made again by this command, since" in caplog.text
    assert "a' is not what was written" in caplog.text
