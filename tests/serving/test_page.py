"""The page of a server, in a real browser.

covers serving/app
"""

import os
from pathlib import Path

from pipeline.serving.adapters import Adapters, Choices
from pipeline.serving.guard import Tokens
from pipeline.serving.limits import Limits
from pipeline.serving.service import Service
from tests.support.browser import check_access, check_phone, needs_browser, open_page, start_browser
from tests.support.served import serving

TOKEN = "a-token-of-a-user"


@needs_browser
def test_a_person_types_a_text_and_labels_and_sees_scores(adapters: dict[str, Path], tmp_path: Path) -> None:
    """With a hostile label, on a wide screen and on a phone, in both schemes; nothing is loaded from elsewhere."""
    loaded = Adapters({"news": adapters["prompt"], "probe": adapters["probe"]}, Choices(device="cpu"))
    service = Service(loaded, Limits(), positions=4096, longest_wait=0.005)
    with serving(service) as address, start_browser() as browser:
        with open_page(browser, f"{address}/") as page:
            page.locator("#model option").nth(1).wait_for(state="attached")
            assert page.locator("#model option").all_text_contents() == ["news (lt_prompt)", "probe (probe)"]
            page.fill("#text", "The bank raised its rate.")
            page.click("#send")
            rows = page.locator("tbody tr")
            rows.first.wait_for()
            want = loaded["news"].predict("The bank raised its rate.")[0]
            assert rows.locator("th").all_text_contents()[0] == want.label and rows.count() == 3
            scores = [f"{value:.3f}" for value in sorted(want.scores.values(), reverse=True)]
            assert rows.locator("td:last-child").all_text_contents() == scores
            page.fill("#labels", "war\n<img src=x onerror=alert(1)>\n")
            page.click("#send")
            page.locator("tbody th", has_text="<img").wait_for()
            assert rows.count() == 2 and page.locator("img").count() == 0
            page.screenshot(path=Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path)) / "serve.png", full_page=True)
            check_access(page)
            page.select_option("#model", "probe")
            assert page.locator("#labels").get_attribute("readonly") is not None
        with open_page(browser, f"{address}/", scheme="dark", width=390) as page:
            page.fill("#text", "The bank raised its rate. " * 9)
            page.click("#send")
            page.locator("tbody tr").first.wait_for()
            assert "its end was not read" in page.locator("caption").text_content()
            check_access(page)
            check_phone(page, screens=2)
        for width in (1000, 390):
            with open_page(browser, f"{address}/docs", width=width) as page:
                assert page.locator("h2", has_text="POST /v1/classify").count() == 1
                check_access(page)
                assert page.evaluate("document.documentElement.scrollWidth") == width


@needs_browser
def test_a_server_with_a_token_asks_for_it(adapters: dict[str, Path]) -> None:
    loaded = Adapters({"probe": adapters["probe"]}, Choices(device="cpu"))
    service = Service(loaded, Limits(), positions=4096, longest_wait=0.005)
    with serving(service, Tokens(user=TOKEN)) as address, start_browser() as browser:
        page = browser.new_page()
        page.goto(f"{address}/")
        page.get_by_text("is missing or wrong").wait_for()
        page.fill("#token", TOKEN)
        page.fill("#text", "a goal")
        page.click("#send")
        page.locator("tbody tr").first.wait_for()
        assert page.locator("#trouble").text_content() == ""


def test_the_page_is_in_the_package() -> None:
    from importlib.resources import files

    folder = files("pipeline.serving")
    assert all(folder.joinpath(name).is_file() for name in ("page.html", "docs.html.j2"))
    for name in ("page.html", "docs.html.j2"):
        assert "http" not in folder.joinpath(name).read_text().replace("http-equiv", ""), "nothing from elsewhere"
