"""A real headless browser that fails the test for a message on the console and for anything a page loads."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium (apt-get install chromium)")
SCREEN = 844
"""Pixels of a phone's height."""

_SMALL = """() => [...document.querySelectorAll("body *")].filter((part) => {
  const words = [...part.childNodes].some((node) => node.nodeType == 3 && node.textContent.trim());
  if (!words || !part.checkVisibility()) return false;
  const picture = part.ownerSVGElement;
  const size = parseFloat(picture ? part.getAttribute("font-size") : getComputedStyle(part).fontSize);
  return size * (picture ? picture.getBoundingClientRect().width / picture.viewBox.baseVal.width : 1) < 10;
}).map((part) => part.outerHTML.slice(0, 200))"""


@contextmanager
def start_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, place: Path | str, scheme: str = "light", width: int = 1000) -> Iterator[Page]:
    """The page, as it stands in its file; or of a server's address, which may be asked for more."""
    address = place if isinstance(place, str) else place.as_uri()
    trouble: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    known = str.startswith if isinstance(place, str) else str.__eq__
    page.on("request", lambda asked: None if known(asked.url, address) else trouble.append(asked.url))
    page.goto(address)
    yield page
    page.close()
    assert trouble == []


def check_access(page: Page) -> None:
    """No violation that axe-core finds: contrast, names of what is reached, alternatives to pictures, tables, order."""
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def check_phone(page: Page, screens: float) -> None:
    """Of a page of 390 pixels: nothing is cut off, no letter is small, and the end is not far."""
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "only pictures and tables scroll sideways"
    assert page.evaluate(_SMALL) == []
    assert page.evaluate("document.documentElement.scrollHeight") < screens * SCREEN


def take_screenshots(page: Page, name: str, otherwise: Path) -> None:
    """One per section, into the folder that REPORT_SCREENSHOTS names."""
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", otherwise))
    for section in page.locator("main > section").all():
        section.screenshot(path=folder / f"{name}-{section.get_attribute('id')}.png")


def paper_and_ink(page: Page) -> tuple[int, int]:
    """How light the page is, and the writing in its pictures."""
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    first, second = (sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) for colour in (paper, ink))
    return first, second
