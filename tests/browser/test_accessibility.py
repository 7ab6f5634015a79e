"""For everybody: the keyboard alone, words for the eye, axe, and a phone."""

from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import START_S, Open, Visit
from tests.browser.looking import (
    TABS,
    compare,
    expect_history,
    recommended,
    search_for,
    wait_for,
    wait_until_drawn,
)
from tests.service.running import Client

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.open()
    page.locator(".start").first.wait_for()

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "combobox"
    page.keyboard.type("film 1")
    page.get_by_role("listbox").get_by_role("option").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    marked = page.get_by_role("option", selected=True)
    assert page.evaluate("document.activeElement.getAttribute('aria-activedescendant')") == (
        marked.get_attribute("id")
    )
    title = marked.locator(".option-title").inner_text()
    page.keyboard.press("Enter")
    expect_history(page, title)
    page.locator("[role=listbox]").first.wait_for(state="hidden")  # it closed; an option was read

    page.get_by_role("tab", name="Try").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Add an item").wait_for()
    page.keyboard.press("End")
    page.get_by_role("heading", name="Health", level=1).wait_for()
    wait_for(page, lambda: page.get_by_role("tab", selected=True).inner_text() == "Health")


def test_what_the_eye_sees_is_said(visit: Visit) -> None:
    page = visit.open(history=["2"])
    title = recommended(page)[0]

    wait_for(page, lambda: f"the first is {title}" in (page.locator("#live").text_content() or ""))
    search_for(page, "film")
    wait_for(page, lambda: "results" in (page.locator("#live").text_content() or ""))


def violations(page: "Page") -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['help']} ({node['html'][:160]}; {node['failureSummary'][:200]})"
        for each in found
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_nothing(service: Client, visiting: Open, tab: str, scheme: str) -> None:
    visit = visiting(service.port, color_scheme=scheme)
    page = visit.open(tab, history=["2", "5"])
    wait_until_drawn(page, tab)

    assert violations(page) == []

    if tab == "try":
        compare(page)
        search_for(page, "film").first.hover()
        assert violations(page) == []
        page.keyboard.press("Escape")
        page.locator(".recommended .title").first.click()
        page.get_by_role("dialog").get_by_text("Nearest to it").wait_for()
        assert violations(page) == []
    if tab == "add":
        page.get_by_label("title", exact=True).fill("Ran")
        page.get_by_role("button", name="Add it").click()
        page.locator(".for-whom").get_by_text("recommended").wait_for()
        assert violations(page) == []
        page.get_by_role("button", name="Take it out again").click()
        page.get_by_text("is out of the catalogue again").wait_for()
    if tab == "map":
        page.locator("canvas").focus()
        page.keyboard.press("Enter")
        page.locator("#map-item").get_by_text("Nearest to it").wait_for()
        assert violations(page) == []


@pytest.mark.parametrize("tab", TABS)
def test_a_phone_need_not_be_scrolled_sideways(service: Client, visiting: Open, tab: str) -> None:
    visit = visiting(service.port, viewport={"width": 375, "height": 700}, has_touch=True)
    page = visit.open(tab, history=["2", "5"])
    wait_until_drawn(page, tab)
    if tab == "try":
        compare(page)

    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    small = page.evaluate(
        """() => [...document.querySelectorAll("main button, header button, main input")]
          .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height > 0)
          .filter((each) => !each.matches(".title, .link, .choice input, .key, .hidden"))
          .filter((each) => {
            const { width, height } = each.getBoundingClientRect();
            return Math.min(width, height) < 21;
          })
          .map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert small == []  # for a finger
