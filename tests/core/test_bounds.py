"""What is not a file, or is too large for one, is left alone; messages have a readable length."""

import os
from pathlib import Path

import pytest

from pipeline.core.bounds import LONGEST_MESSAGE, abridged, check_folder, check_regular, read_text
from pipeline.core.yaml import load_yaml


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "text").write_text("abc")
    for path, words in (("pipe", "a pipe"), ("link", "a device"), (".", "a folder")):
        with pytest.raises(OSError, match=f"^it is {words}, not a file$"):
            read_text(tmp_path / path, 10)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nothing")
    with pytest.raises(OSError, match="it has 3 bytes, at most 2 are read"):
        read_text(tmp_path / "text", 2)
    assert read_text(tmp_path / "text", 3) == "abc"


def test_a_folder_is_read_where_all_its_files_are_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    check_folder(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"^it is a pipe, not a file \(pipe\)$"):
        check_folder(tmp_path)


def test_long_messages_keep_their_ends() -> None:
    message = "begin " + "x" * 10_000 + " end"
    short = abridged(message)
    assert len(short) <= LONGEST_MESSAGE + 10
    assert short.startswith("begin ") and short.endswith(" end") and "characters left out" in short
    assert abridged("x" * LONGEST_MESSAGE) == "x" * LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 20}]\n" for a, b in ("ab", "bc", "cd", "de")), "aliases"),
        ("a: &a [[*a]]", "'\\*a' leads back to itself"),
        ("a: 0x" + "f" * 5000, "more than 300 digits"),
        ("a: " + "1" * 5000, "more than 300 digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_yaml_that_is_more_than_it_looks(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_yaml(text)


def test_aliases_are_counted_as_they_are_written_out() -> None:
    names = ", ".join(f"l{n}" for n in range(1000))
    assert load_yaml(f"a: &a [{names}]\nb: *a\nc: {{<<: {{x: *a}}}}")["c"]["x"][999] == "l999"
    assert load_yaml("a: '&'") == {"a": "&"}
