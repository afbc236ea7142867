"""A comparison's page in a real browser, made of invented runs: every picture, every width, hostile names harmless.

covers reports/comparison_charts, reports/comparison_page, reports/page
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from pipeline.cli import main
from pipeline.reports.comparison_page import SECTIONS
from tests.support.browser import (
    check_access,
    check_phone,
    needs_browser,
    open_page,
    paper_and_ink,
    start_browser,
    take_screenshots,
)
from tests.support.compared import invent

DATASET = "</script><script>window.harmed=1</script>"
METHOD = "<img src=x onerror='window.harmed=1'>"
METHODS = ("lt_prefix", "lt_prompt", "prefix", "probe", METHOD, "majority")
FIGURES = 3 * 5 + 1
"""Three data sets with differences, two curves and two cost planes each; one of them with several sizes."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("comparisons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.comparison.statistics.RESAMPLES", 100)
        invent(folder / "first", ["sst2", DATASET], methods=METHODS, about={"sst2": "film reviews"})
        published = {"minilm": {"rte": {"prefix": 0.875}}}
        invent(folder / "second", ["rte"], methods=METHODS, sizes=("16", "256", "all"), published=published)
    return [folder / "first", folder / "second"]


@pytest.fixture(scope="module")
def page_file(folders: list[Path]) -> Path:
    file = folders[0].parent / "page.html"
    assert main(["report", "--compare", *map(str, folders), "--output", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


def test_it_is_small_and_refers_to_nothing_outside(page_file: Path) -> None:
    text = page_file.read_text()
    assert len(text.encode()) < 1_500_000
    for word in ("<link", "<img", "src=", "@import", "url("):
        assert word not in text.split("<script>")[0].replace("img src=x", "")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_is_drawn_in_both_schemes(browser: Browser, page_file: Path, scheme: str, tmp_path: Path) -> None:
    with open_page(browser, page_file, scheme) as page:
        assert page.locator("figure").count() == FIGURES
        for picture in page.locator("figure svg").all():
            assert picture.get_attribute("role") == "img" and "tables follow" in str(
                picture.get_attribute("aria-label")
            )
            assert picture.locator("path[fill], path[stroke]").count() >= 4
        check_access(page)
        paper, ink = paper_and_ink(page)
        assert (ink > paper) == (scheme == "dark"), "the pictures take the colours of the page"
        lines = page.locator("#curves figure").first.locator(".mark-line path")
        widths = [float(line.get_attribute("stroke-width") or 0) for line in lines.all()]
        assert widths == [1.4, 1.4, 3.2, 3.2], "L-Tuning is drawn with thick lines, over the others"
        colours = {line.evaluate("(path) => getComputedStyle(path).stroke") for line in lines.all()}
        assert len(colours) == 4 and "none" not in colours
        take_screenshots(page, f"comparison-{scheme}", tmp_path)


@needs_browser
def test_names_are_only_shown(browser: Browser, page_file: Path) -> None:
    with open_page(browser, page_file) as page:
        assert DATASET in page.locator("#overview").inner_text() and METHOD in page.locator("#overview").inner_text()
        assert page.evaluate("window.harmed") is None and page.locator("img").count() == 0
        assert page.locator("script").count() == 1


def test_it_says_what_was_found_what_the_sets_are_and_what_the_verdict_means(page_file: Path) -> None:
    text = page_file.read_text()
    [sentence] = re.findall(r"<strong>(.*?)</strong>", text, re.DOTALL)
    assert re.fullmatch(r"Against .*, on 3 data sets: lt_prefix is better in \d of 5, .*; lt_prompt is .*\.", sentence)
    assert "<dt>sst2</dt><dd>film reviews</dd>" in text and text.count("do not say that both are equally good") == 1


@needs_browser
def test_keyboard_narrow_screens_and_print(browser: Browser, page_file: Path, tmp_path: Path) -> None:
    with open_page(browser, page_file, width=390) as page:
        check_phone(page, 6)
        check_access(page)
        page.keyboard.press("Tab")
        for name, _ in SECTIONS:
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.getAttribute('href')") == f"#{name}"
        page.locator("#curves input:checked").focus()
        assert page.locator("#curves .first").is_visible() and not page.locator("#curves .second").is_visible()
        page.keyboard.press("ArrowRight")
        assert page.locator("#curves .second").is_visible() and not page.locator("#curves .first").is_visible()
        take_screenshots(page, "comparison-narrow", tmp_path)
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible() and not page.locator("fieldset").first.is_visible()
        assert len(page.pdf(format="A4")) > 20_000


def test_the_tables_hold_the_summary(page_file: Path, folders: list[Path]) -> None:
    text = page_file.read_text()
    assert text.count("published 0.875") == 1, "beside the figure of all training texts alone"
    for folder in folders:
        for line in pq.read_table(folder / "summary.parquet").to_pylist():
            assert f"{line['mean']:.4f}" in text and f"{line['validation']:.4f}" in text
            assert line["low"] is None or f"{line['low']:+.4f}".replace("-", "\u2212") in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare", "{empty}"], "holds no finished comparison (summary.parquet is missing)"),
        (["--compare", "{damaged}"], "summary.parquet' cannot be read"),
        (["--compare", "{first}", "{second}"], "say where to write it, with --output FILE"),
        (["--compare", "{first}", "--run", "{first}"], "not allowed with argument"),
        ([], "one of the arguments --run --compare is required"),
    ],
)
def test_what_cannot_be_reported(
    options: list[str], words: str, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.parquet").write_bytes(b"PAR1 no more")
    names = {"first": folders[0], "second": folders[1], "empty": tmp_path, "damaged": tmp_path / "damaged"}
    try:
        status = main(["report", *(option.format(**names) for option in options)])
    except SystemExit as end:
        status = end.code
    assert status == 2 and words in capsys.readouterr().err.splitlines()[-1]
