"""How tests look at the page, and wait for what they look at."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.browser.conftest import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

DRAWN = {  # a part of each tab that comes last
    "try": ".recommended > li",
    "add": "#panel-add form",
    "map": "#map-item h2",
    "health": "#health-quality",
}
TABS = tuple(DRAWN)


def texts(locator: "Locator") -> list[str]:
    locator.first.wait_for()
    return [each.strip() for each in locator.all_inner_texts()]


def recommended(page: "Page") -> list[str]:
    return texts(page.locator(".recommended > li .title"))


def in_history(page: "Page") -> list[str]:
    return texts(page.locator(".history > li .title"))


def wait_for(page: "Page", found: Callable[[], bool]) -> None:
    """Wait for what no locator can say."""
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, page.locator("main").inner_text()
        page.wait_for_timeout(50)


def search_for(page: "Page", words: str) -> "Locator":
    page.get_by_role("combobox", name="Search the catalogue").fill(words)
    options = page.get_by_role("listbox").get_by_role("option")
    options.first.wait_for()
    return options


def wait_until_drawn(page: "Page", tab: str) -> None:
    """Wait until all of a tab is there and nothing of it is about to be replaced."""
    page.locator(DRAWN[tab]).first.wait_for()
    page.locator("[aria-busy=true]").first.wait_for(state="detached")
    if tab == "health":  # figures of a second reading
        wait_for(page, lambda: "…" not in texts(page.locator("#panel-health .big")))


def compare(page: "Page") -> "Locator":
    """Set what everybody gets beside it; the columns."""
    page.get_by_role("switch").check()
    columns = page.locator(".column")
    wait_for(page, lambda: columns.count() == 3)
    return columns


def expect_history(page: "Page", *titles: str) -> None:
    wait_for(page, lambda: in_history(page) == list(titles))
