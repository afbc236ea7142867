"""The report in a real browser: every picture drawn, nothing loaded, hostile texts and labels harmless.

covers reports/charts, reports/page, reports/run
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.stages.report import SECTIONS, report
from pipeline.stages.run import run
from tests.support.browser import MOST_BYTES, needs_browser, open_page, paper_and_ink, start_browser, take_screenshots
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
    assert len(text.encode()) < MOST_BYTES
    head = text.split("<script>")[0]
    for word in ("<link", "<img", "src=", "@import", "url("):
        assert word not in head.replace("&lt;img src=x", "")
    assert "\\u202eturned \\u001b[2J" in head, "what would turn the words around it, or hide them, is written out"
    assert all(character.isprintable() or character in "\n\u200b" for character in head)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_is_drawn_in_both_schemes(browser: Browser, page_file: Path, scheme: str, tmp_path: Path) -> None:
    with open_page(browser, page_file, scheme) as page:
        figures = page.locator("figure")
        assert figures.count() == 6
        for index in range(6):
            assert figures.nth(index).locator("svg [role='graphics-symbol']").count() >= 2
        paper, ink = paper_and_ink(page)
        assert (ink > paper) == (scheme == "dark"), "the pictures take the colours of the page"
        take_screenshots(page, f"run-{scheme}", tmp_path)


@needs_browser
def test_hostile_texts_and_labels_are_only_shown(page: Page) -> None:
    assert page.evaluate("window.harmed") is None
    assert page.locator("script").count() == 2 + page.locator("figure").count() and page.locator("img").count() == 0
    assert page.locator("a:not([href^='#'])").count() == 0
    shown, classes = page.locator("#mistakes").inner_text(), page.locator("#classes table").text_content()
    assert any(text.split(" \u2028")[0] in shown for text in TEXTS) and LABEL in str(classes)
    page.locator("#matrix svg .mark-rect path").first.hover(position={"x": 9, "y": 9})  # beside the count
    page.locator("#vg-tooltip-element.visible").wait_for()
    assert page.evaluate("window.harmed") is None


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_static_page_holds_its_pictures_and_no_script(
    config: RunConfig, browser: Browser, tmp_path: Path, scheme: str
) -> None:
    file = tmp_path / "page.html"
    assert main(["report", "--run", config.run.dir, "--static", "--output", str(file)]) == 0
    text = file.read_text()
    assert len(text) < 300_000 and "<script" not in text and "unsafe-eval" not in text
    assert "script-src" not in text and "default-src &#39;none&#39;" in text
    assert all(character.isprintable() or character in "\n\u200b" for character in text)
    with open_page(browser, file, scheme) as page:
        assert page.locator("figure").count() == 6
        for figure in page.locator("figure").all():
            assert figure.locator("svg [role='graphics-symbol']").count() >= 2
        paper, ink = paper_and_ink(page)
        assert (ink > paper) == (scheme == "dark"), "the pictures take the colours of the page"
        assert LABEL[:20] in str(page.locator("#classes svg").text_content())
        assert page.evaluate("window.harmed") is None and page.locator("script, img").count() == 0


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
    assert lines[-1].startswith("error: ") and len(lines[-1]) < 2000


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
