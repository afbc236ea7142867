"""The report in a real browser: every picture drawn, nothing loaded, hostile texts and labels harmless."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.stages.report import SECTIONS, report
from pipeline.stages.run import run
from tests.tiny_run import tiny_config

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium (apt-get install chromium)")
MOST_BYTES = 3_000_000
LABEL = "</script><script>window.harmed=1</script>"
TEXTS = [
    "<img src=x onerror='window.harmed=1'>",
    "</script><script>window.harmed=1</script><!--",
    "{{ 7 * 7 }} javascript:window.harmed=1 \u2028 &lt;b&gt;",
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


@pytest.fixture
def page(page_file: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, drawn; it fails the test for a message on the console and for a request."""
    trouble: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1000, "height": 900}, color_scheme=getattr(request, "param", "light")
        )
        page.set_default_timeout(120_000)
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda asked: trouble.append(asked.url) if asked.url != page_file.as_uri() else None)
        page.goto(page_file.as_uri())
        page.wait_for_function("[...document.querySelectorAll('figure')].every((figure) => figure.dataset.drawn)")
        yield page
        browser.close()
    assert trouble == []


def test_it_is_small_and_refers_to_nothing_outside(page_file: Path) -> None:
    text = page_file.read_text()
    assert len(text.encode()) < MOST_BYTES
    for word in ("<link", "<img", "src=", "@import", "url("):
        assert word not in text.split("<script>")[0].replace("&lt;img src=x", "")


@needs_browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_every_picture_is_drawn_in_both_schemes(page: Page, tmp_path: Path) -> None:
    """Screenshots of the sections go to REPORT_SCREENSHOTS, if that is set."""
    figures = page.locator("figure")
    assert figures.count() == 6
    for index in range(6):
        assert figures.nth(index).locator("svg [role='graphics-symbol']").count() >= 2
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    light_of = {colour: sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) for colour in (paper, ink)}
    assert (light_of[ink] > light_of[paper]) == dark, "the pictures take the colours of the page"
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))
    for name, _ in SECTIONS:
        page.locator(f"#{name}").screenshot(path=folder / f"{'dark' if dark else 'light'}-{name}.png")


@needs_browser
def test_hostile_texts_and_labels_are_only_shown(page: Page) -> None:
    assert page.evaluate("window.harmed") is None
    assert page.locator("script").count() == 2 + page.locator("figure").count() and page.locator("img").count() == 0
    shown, classes = page.locator("#mistakes").inner_text(), page.locator("#classes table").text_content()
    assert any(text.split(" \u2028")[0] in shown for text in TEXTS) and LABEL in str(classes)
    page.locator("#matrix svg .mark-rect path").first.hover(position={"x": 9, "y": 9})  # beside the count
    page.locator("#vg-tooltip-element.visible").wait_for()
    assert page.evaluate("window.harmed") is None


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


def test_runs_that_cannot_be_reported(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        report(str(tmp_path))
    shutil.copytree(config.run_dir.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    assert main(["report", "--run", str(tmp_path / "run")]) == 2
    assert "run the stage that writes it first" in capsys.readouterr().err
