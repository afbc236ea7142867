"""What is under version control was written here, for readers: no bundled library, no page that needs one."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browser import needs_browser, open_page, paper_and_ink, start_browser

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = REPOSITORY / "docs" / "example_report.html"
SERVED = REPOSITORY / "pipeline" / "serving" / "page.html"
"""The page of `ltune serve`, whose script asks the server."""
SORTING = (REPOSITORY / "pipeline" / "reports" / "sort.js").read_text()
LONGEST_LINE = 2000
"""Minified code has lines of hundreds of thousands of characters."""


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [file for name in listed.stdout.split("\0") if name and (file := REPOSITORY / name).is_file()]


def test_no_file_holds_a_minified_library() -> None:
    files = committed()
    assert len(files) > 100 and EXAMPLE in files
    written = [file for file in files if file.suffix != ".png"]
    longest = {str(file): max(map(len, file.read_bytes().split(b"\n"))) for file in written}
    assert {name: length for name, length in longest.items() if length > LONGEST_LINE} == {}


def test_committed_pages_have_no_script_but_the_two_written_here() -> None:
    pages = [file for file in committed() if file.suffix in (".html", ".svg")]
    scripts = {page.name: re.findall(r"<script[^>]*>(.*?)</script", page.read_text(), re.DOTALL) for page in pages}
    assert scripts.pop(EXAMPLE.name) == [SORTING]
    [asking] = scripts.pop(SERVED.name)
    assert max(map(len, asking.splitlines())) <= 120 and not re.search(r"<(script|link)[^>]*(src|href)=.http", asking)
    assert not any(scripts.values())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_example_shows_every_picture(browser: Browser, scheme: str) -> None:
    with open_page(browser, EXAMPLE, scheme) as page:
        figures = page.locator("figure")
        assert figures.count() == 5 and figures.locator("svg").count() == 5
        for figure in figures.all():
            assert figure.locator("svg path").count() >= 4
        paper, ink = paper_and_ink(page)
        assert (ink > paper) == (scheme == "dark")
        page.locator("#curves .to-second").check()
        assert page.locator("#curves .second").is_visible() and not page.locator("#curves .first").is_visible()
