"""The report in a real browser: every picture drawn, nothing loaded, hostile texts and labels harmless.

covers reports/charts, reports/page, reports/run, reports/run_page
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.reports.charts import confusion_matrix
from pipeline.reports.page import drawn
from pipeline.reports.run_page import SECTIONS
from pipeline.stages.report import report
from pipeline.stages.run import run
from tests.support.browser import (
    check_access,
    check_phone,
    needs_browser,
    open_page,
    paper_and_ink,
    start_browser,
    take_screenshots,
)
from tests.support.tiny_run import tiny_config

LABEL = "</script><script>window.harmed=1</script>"
TEXTS = [
    "<img src=x onerror='window.harmed=1'>",
    "</script><script>window.harmed=1</script><!--",
    "{{ 7 * 7 }} javascript:window.harmed=1 \u2028 &lt;b&gt;",
    "\u202eturned \x1b[2J\a <a href='javascript:window.harmed=1'>a link</a>",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A real run on texts and labels that would like to be markup."""
    folder = tmp_path_factory.mktemp("report")
    training = {"max_steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 2}
    config = tiny_config(folder, train=training, logging={"trackers": ["jsonl"]})
    for split in ("train", "validation", "test"):
        file = folder / f"{split}.tsv"
        hostile = [f"{text} {split}\t{label}" for text in TEXTS for label in (LABEL, "sport", "business")]
        file.write_text(file.read_text().replace("\tscience", f"\t{LABEL}") + "\n".join(hostile) + "\n")
    config.run_dir.create()
    config.run_dir.write_config(config.to_yaml())
    run(config)
    report(config.run.dir)
    return config


@pytest.fixture(scope="module")
def page_file(config: RunConfig) -> Path:
    return config.run_dir.path / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    with open_page(browser, page_file) as page:
        yield page


def test_it_is_small_and_refers_to_nothing_outside(page_file: Path) -> None:
    text = page_file.read_text()
    assert len(text.encode()) < 1_000_000
    head = text.split("<script>")[0]
    for word in ("<link", "<img", "src=", "@import", "url("):
        assert word not in head.replace("&lt;img src=x", "")
    assert "\\u202eturned \\u001b[2J" in head, "what would turn the words around it, or hide them, is written out"
    assert all(character.isprintable() or character in "\n\u200b" for character in head)


def test_labels_that_no_svg_can_hold_are_written_out() -> None:
    """What draws the picture would abort the process, not raise."""
    labels = ["half \ud800", "cleared \x1b[2J", "none \ufffe"]
    cells = [{"true": true, "predicted": other, "count": 1, "share": 0.5} for true in labels for other in labels]
    picture = drawn(confusion_matrix(cells, labels, 660))
    assert all(picture.count(shown) == 2 for shown in ("half \\ud800", "cleared \\u001b[2J", "none \\ufffe"))


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_picture_is_there_in_both_schemes(
    browser: Browser, page_file: Path, scheme: str, width: int, tmp_path: Path
) -> None:
    """Without a script, with a description and a table behind it, and readable for those who see or reach less."""
    with open_page(browser, page_file, scheme, width) as page:
        seen = page.locator("figure > div:visible")
        assert page.locator("figure").count() == seen.count() == 8
        for picture in page.locator("figure > div:visible > svg").all():
            assert picture.get_attribute("role") == "img" and "table follows" in str(
                picture.get_attribute("aria-label")
            )
            assert picture.locator("path[fill], path[stroke]").count() >= 4
        for section in page.locator("section:has(figure)").all():
            assert section.locator("details table tbody tr").count() >= 2
        paper, ink = paper_and_ink(page)
        assert (ink > paper) == (scheme == "dark"), "the pictures take the colours of the page"
        check_access(page)
        if width == 390:
            check_phone(page, 6)
        take_screenshots(page, f"run-{scheme}-{width}", tmp_path)


@needs_browser
def test_hostile_texts_and_labels_are_only_shown(page: Page) -> None:
    assert page.evaluate("window.harmed") is None
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0
    assert page.locator("a:not([href^='#'])").count() == 0
    shown, classes = page.locator("#mistakes").text_content(), page.locator("#classes table").text_content()
    assert any(text.split(" \u2028")[0] in str(shown) for text in TEXTS) and LABEL in str(classes)
    assert LABEL[:20] in str(page.locator("#classes svg").first.text_content())


@needs_browser
def test_a_heading_sorts_its_column(page: Page) -> None:
    page.locator("#classes summary").click()
    heading = page.locator("#classes th", has_text="recall")
    for order in ("descending", "ascending"):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == order
        shown = [float(value) for value in page.locator("#classes tbody td:nth-child(3)").all_text_contents()]
        assert shown == sorted(shown, reverse=order == "descending") and len(set(shown)) > 1


def test_the_first_sentence_says_what_was_found(config: RunConfig, page_file: Path) -> None:
    [sentence] = re.findall(r"<strong>(.*?)</strong>", page_file.read_text(), re.DOTALL)
    metrics = read_json(config.run_dir.metrics_file)["test"]
    assert sentence.startswith(f"{metrics['accuracy']:.1%} of the {metrics['n']} test texts are labelled rightly; ")
    assert f"right for {metrics['majority']['accuracy']:.1%}; most often" in sentence


@needs_browser
def test_the_keyboard_reaches_everything_and_print_leaves_out_what_it_cannot_use(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for name, _ in SECTIONS:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')") == f"#{name}"
        assert page.locator(f"section#{name}").count() == 1
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator("details:visible").count() == 1
    assert len(page.pdf(format="A4")) > 20_000


def test_a_page_without_texts_says_why(config: RunConfig, tmp_path: Path) -> None:
    source = Path(str(config.data.test))
    source.rename(source.with_suffix(".away"))
    try:
        text = report(config.run.dir, str(tmp_path / "page.html")).read_text()
    finally:
        source.with_suffix(".away").rename(source)
    assert "the texts cannot be read any more" in text and "<blockquote" not in text


def test_texts_are_left_out_when_they_are_not_wanted(config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert main(["report", "--run", config.run.dir, "--no-texts", "--output", str(file)]) == 0
    text = file.read_text()
    assert "<blockquote" not in text and "made without the texts" in text and "javascript:window" not in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation/metrics.json", "[" * 100_000),
        ("evaluation/metrics.json", "{}"),
        ("evaluation/metrics.json", '{"model_config": {"labels": []}}'),
        ("evaluation/metrics.json", '{"test": []}'),
        ("evaluation/predictions.parquet", "PAR1"),
        ("logs/metrics.jsonl", "{"),
        ("logs/metrics.jsonl", "[" * 100_000),
        ("logs/metrics.jsonl", "5"),
        ("logs/cost.json", "{}"),
        ("logs/cost.json", '{"memory"'),
        ("config.yaml", "a: " * 5000),
        ("config.yaml", "labels: {names: " + "[" * 5000),
        ("config.yaml", "x: &a [1]\ny: &b [*a, *a]\nlabels: {names: [*b, *b]}"),
    ],
)
def test_damaged_files_of_a_run_are_one_line(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture, file: str, content: str
) -> None:
    shutil.copytree(config.run_dir.path, tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    assert main(["report", "--run", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and len(lines[-1]) < 2000 and "unexpected" not in lines[-1]


def test_two_labels_and_no_log_of_the_training_make_a_page_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, train={"max_steps": 2, "batch_size": 4})
    for split in ("train", "validation", "test"):
        file = tmp_path / f"{split}.tsv"
        file.write_text(file.read_text().replace("\tscience", "\tsport"))
    config.run_dir.create()
    config.run_dir.write_config(config.to_yaml())
    run(config)
    config.run_dir.metrics_log.unlink()
    text = report(config.run.dir).read_text()
    assert "three labels or more" in text and 'id="curves"' not in text


def test_runs_that_cannot_be_reported(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        report(str(tmp_path))
    shutil.copytree(config.run_dir.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    assert main(["report", "--run", str(tmp_path / "run")]) == 2
    assert "evaluation/metrics.json' does not exist: run evaluate first" in capsys.readouterr().err


def test_nothing_that_is_read_is_written(config: RunConfig) -> None:
    run_dir = config.run_dir
    read = [run_dir.config_file, run_dir.metrics_file, run_dir.adapter / "labels.json", Path(str(config.data.test))]
    for output in [*read, run_dir.adapter / "page.html", Path(config.backbone.name_or_path) / "config.json"]:
        before = output.read_bytes() if output.exists() else None
        with pytest.raises(UserError, match="would overwrite what is read"):
            report(config.run.dir, str(output))
        assert (output.read_bytes() if output.exists() else None) == before
    page = run_dir.path / "report.html"
    assert report(config.run.dir) == report(config.run.dir, str(page)) == page
    mine = page.rename(run_dir.path.parent / "mine.html")
    page.symlink_to(mine)
    before = mine.read_bytes()
    with pytest.raises(UserError, match="is a symbolic link: remove it, or say where"):
        report(config.run.dir)
    assert mine.read_bytes() == before
    page.unlink()
