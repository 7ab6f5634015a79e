"""What all tabs stand in: theme, size, safety, and a prefix before it."""

import re
import subprocess
import sys

import pytest

from tests.browser.conftest import START_S, Visit
from tests.browser.looking import expect_history, recommended, wait_for
from tests.service.running import Client

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]

KILOBYTE = 1000


def test_the_theme_is_chosen_and_kept(visit: Visit) -> None:
    page = visit.open()
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)

    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    wait_for(page, lambda: "dark" in (button.get_attribute("aria-label") or ""))
    dark = page.evaluate(colour)
    page.reload()

    assert page.evaluate(colour) == dark != light


def test_the_page_is_light_and_soon_painted(visit: Visit) -> None:
    sizes: list[int] = []
    visit.page.on("response", lambda answer: sizes.append(len(answer.body())))
    page = visit.open(history=["2"])
    recommended(page)
    page.wait_for_load_state("networkidle")

    assert 20 * KILOBYTE < sum(sizes) < 300 * KILOBYTE
    painted = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? Infinity"
    )
    assert painted < 5000  # ms, where much else runs; at rest it is far below a second


def test_nothing_that_a_catalogue_says_becomes_markup(visit: Visit, service: Client) -> None:
    evil = "<img src=x onerror=document.title='taken'>"
    service.put("/items/evil", json={"attributes": {"title": evil, "genres": [evil]}})
    try:
        page = visit.open(history=["evil"])
        expect_history(page, evil)
        page.get_by_text(f"because of {evil}").first.wait_for()  # drawn everywhere
        assert page.locator("main img").count() == 0
        assert page.title() != "taken"
    finally:
        service.delete("/items/evil")


def test_a_prefix_of_a_proxy_changes_nothing(service: Client) -> None:
    html = service.get("/").text
    assert not re.findall(r'(?:src|href)="/', html)


def test_the_command_for_screenshots_says_how_it_is_used() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.browser.screenshots", "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert "--bundle" in told
