"""Texts from elsewhere are only shown: on a terminal, in Markdown, in JSON lines, on a page.

covers adapter/card
"""

import json
import logging
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import logging as transformers

from pipeline.adapter.card import model_card
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.core.escapes import JOINERS, for_code_span, for_markdown, visible
from pipeline.stages.predict import predict
from tests.support.compared import invent
from tests.support.fork_server import run_forked
from tests.support.tiny_run import tiny_config, tiny_run

BELL, CLEAR, TITLE, CSI8, TURNED, BACK = "\a", "\x1b[2J\x1b[H", "\x1b]0;owned\a", "\x9b31m", "\u202egnp.exe", "\b\b\r"
HOSTILE = BELL + CLEAR + TITLE + CSI8 + TURNED + BACK + "\u2028\u2066\u200f\ufeff\x7f"
MARKUP = [
    "[free](javascript:alert(1))",
    "![x](https://evil.example/track.png)",
    "<img src=x onerror=alert(1)>",
    "<https://evil.example>",
    "https://evil.example/x",
    "www.evil.example",
    "a | b",
    "a\n| b | c |\n# head",
    "`code` **bold** _it_ __init__ ~~no~~ snake_case",
    "</td></table><script>alert(1)</script>",
    "\\[x](javascript:alert(1))\\",
    "&lt;script&gt; &#60;",
    "$x$ [ref]: javascript:alert(1)",
]
"""None of it may be more than words."""


def shown_raw(text: str) -> list[str]:
    """Characters of `text` that a terminal obeys instead of showing."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in JOINERS]


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left_and_nothing_else_is_changed(text: str) -> None:
    assert not shown_raw(visible(text))
    if not shown_raw(text):
        assert visible(text) == text


@given(st.text())
def test_a_json_line_keeps_its_value(text: str) -> None:
    assert json.loads(visible(json.dumps({"text": text}, ensure_ascii=False))) == {"text": text}


def test_words_of_all_scripts_stay_as_they_are() -> None:
    for text in ("naïve Straße", "می‌خواهم", "क्‍ष", "👩‍🚀", "電影　と", "שלום עולם", "50\u00a0%"):
        assert visible(text) == text
    assert visible("a\x1b[2J\u202eb\U000e0041\ud800") == r"a\u001b[2J\u202eb\udb40\udc41\ud800"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\u0009c"


class _Parsed(HTMLParser):
    """Tags, and the text of the first cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td" and self.cells:
            self.cells[-1] += data


def rendered(markdown: str, renderer: str) -> _Parsed:
    if renderer == "markdown":
        module = pytest.importorskip("markdown")
        return _Parsed(module.markdown(markdown, extensions=["tables"]))
    module = pytest.importorskip("markdown_it")
    pages = module.MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"])
    return _Parsed(pages.render(markdown))


@pytest.mark.parametrize("renderer", ["markdown", "markdown_it"])
@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_only_shown_in_a_table(text: str, renderer: str) -> None:
    """Rendered by two programs that turn Markdown, raw HTML included, into pages."""
    page = rendered(f"| label | wording |\n|---|---|\n| {for_markdown(text)} | end |\n", renderer)
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert [cell.strip() for cell in page.cells] == [" ".join(text.split()), "end"]


@pytest.mark.parametrize("text", [*MARKUP, HOSTILE])
def test_a_model_card_holds_no_link_html_or_control_character(text: str) -> None:
    card = model_card(
        backbone=text,
        revision=text,
        method="lt_prompt",
        parameters=3,
        labels=[(text, text), ("b", "c")],
        pair=False,
        max_length=8,
        open_labels=True,
        results={},
    )
    assert not [c for c in shown_raw(card) if c != "\n"]
    assert card.count("\n---\n") == 1
    assert ("base_model" in card) == (text == "www.evil.example"), "which could be a hub id"
    body = card.split("\n---\n")[1]
    for renderer in ("markdown", "markdown_it"):
        page = rendered(body, renderer)
        assert not {"a", "img", "script", "del"} & set(page.tags)
        assert page.tags.count("tr") == 3 and len(page.cells) == 4


def test_a_code_span_is_one() -> None:
    assert for_code_span("a`b``c\n\n# d \x1b") == r"`a'b''c # d \u001b`"


def test_tables_of_a_comparison_hold_names_as_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "a | b [x](javascript:1) <b> \x1b[2J"
    invent(tmp_path, [name], methods=["lt_prefix", "x | y", "majority"], backbones=["<i>"])
    text = (tmp_path / "tables.md").read_text()
    for shown in (text, capsys.readouterr().out):
        assert "\x1b" not in shown and "<b>" not in shown and "<i>" not in shown and "[x](" not in shown
        assert r"x \| y" in shown
    rows = [line for line in text.splitlines() if line.startswith("| &lt;i>")]
    assert len(rows) == 3 and all(line.replace("\\|", "").count("|") == 4 for line in rows)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Data whose labels, and a folder whose name, a terminal would obey."""
    folder = tmp_path_factory.mktemp("escapes") / f"data{CLEAR}{TURNED}"
    folder.mkdir()
    config = tiny_config(folder)
    for split in ("train", "validation", "test"):
        file = folder / f"{split}.tsv"
        file.write_text(file.read_text().replace("\tscience", f"\tscience{CLEAR}{CSI8}"))
    return config


def test_nothing_moves_the_cursor_where_there_is_no_terminal(config: RunConfig, tmp_path: Path) -> None:
    """Progress bars do, and what they are told is told before their library is imported: a Python of its own."""
    file = tmp_path / "config.yaml"
    file.write_text(config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path)})}).to_yaml())
    command = [sys.executable, "-m", "pipeline", "preprocess", "--config", str(file)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    assert b"science\\u001b[2J" in output and not [c for c in shown_raw(output.decode()) if c != "\n"]


@pytest.mark.parametrize("debug", [False, True])
def test_log_lines_and_errors_of_the_command_line(config: RunConfig, tmp_path: Path, debug: bool) -> None:
    """Of the whole program in a process of its own: log lines, one-line errors, and tracebacks with --debug."""
    file = tmp_path / "config.yaml"
    file.write_text(config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path)})}).to_yaml())
    command = ["preprocess", "--config", str(file), *(["--debug"] if debug else [])]
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert run_forked("pipeline.cli:main", command, good, 300) == 0
    assert b"science\\u001b[2J" in good.read_bytes()
    assert run_forked("pipeline.cli:main", [*command, f"data.text={HOSTILE[1:]}\n error: x"], bad, 300) == 2
    assert b"\\u202egnp.exe" in bad.read_bytes()
    for output in (good, bad):
        assert not [c for c in shown_raw(output.read_bytes().decode()) if c not in "\n\t"]
    if not debug:
        assert len(bad.read_bytes().splitlines()) == 1


def warn(arguments: list[str]) -> None:
    [name] = arguments
    logger = transformers.get_logger(name) if name.startswith("transformers") else logging.getLogger(name)
    main(["report", "--run", "nowhere"])
    logger.warning("a %s", "label\nerror: \x1b[31mposing")


@pytest.mark.parametrize("name", ["pipeline.x", "somebody", "transformers.models.x"])
def test_a_log_line_is_one_line_whoever_writes_it(name: str, tmp_path: Path) -> None:
    """transformers prints by a handler of its own."""
    assert run_forked("tests.core.test_escapes:warn", [name], tmp_path / "log", 60) == 0
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith(r"a label error: \u001b[31mposing")


def test_predictions_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny_run(tmp_path)
    text = f"a goal {TURNED}{CSI8} \u200f end"
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert predict(config.run.dir, str(tmp_path / "texts.jsonl"), device="cpu") == 1
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert not shown_raw(line) and json.loads(line)["text"] == text


def test_a_dry_run_and_a_comparison_that_is_listed(config: RunConfig, capsys: pytest.CaptureFixture) -> None:
    file = Path(config.run.dir).parent / "config.yaml"
    file.write_text(config.to_yaml())
    assert main(["run", "--config", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not [c for c in shown_raw(printed) if c != "\n"] and r"data\u001b[2J" in printed
