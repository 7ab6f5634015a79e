"""Adding an item in a real browser."""

import pytest

from tests.browser.conftest import START_S, Visit
from tests.browser.looking import recommended, texts, wait_for
from tests.service.running import Client

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]


def test_an_item_is_added_has_neighbours_and_is_recommended(visit: Visit, service: Client) -> None:
    page = visit.open("add")

    page.get_by_label("title", exact=True).fill("Seven Samurai")
    page.get_by_label("release_year").fill("1954")
    page.get_by_label("Action", exact=True).check()
    page.get_by_role("button", name="Another attribute").click()
    page.get_by_label("Attribute", exact=True).fill("country")
    page.get_by_label("Value", exact=True).fill("Japan")
    page.get_by_role("button", name="Add it").click()

    page.get_by_text("Stored and recommendable").wait_for()
    item_id = page.locator("#added .id code").inner_text()
    assert item_id.startswith("new-seven-samurai-")
    assert service.get(f"/items/{item_id}").json()["attributes"] == {
        "title": "Seven Samurai",
        "release_year": "1954",
        "genres": ["Action"],
        "country": "Japan",
    }
    assert len(texts(page.locator("#added .neighbours .title"))) == 8
    told = page.locator(".for-whom")
    wait_for(page, lambda: "it is recommended at place" in told.inner_text())

    page.get_by_role("button", name="Try that history").click()
    wait_for(page, lambda: "Seven Samurai" in recommended(page))

    page.get_by_role("tab", name="Add an item").click()
    page.get_by_role("button", name="Take it out again").click()
    page.get_by_text("is out of the catalogue again").wait_for()
    assert service.get(f"/items/{item_id}").status_code == 404


def test_an_id_that_is_taken_is_refused_and_nothing_is_overwritten(
    visit: Visit, service: Client
) -> None:
    visit.expect("412")
    before = service.get("/items/3").json()
    page = visit.open("add")

    page.get_by_label("title", exact=True).fill("Another film")
    page.get_by_label("Id", exact=True).fill("3")
    page.get_by_role("button", name="Add it").click()

    page.get_by_text("The id 3 is taken").wait_for()
    assert service.get("/items/3").json() == before


def test_what_is_no_number_or_said_twice_is_refused_in_the_form(
    visit: Visit, service: Client
) -> None:
    service.put("/items/rated", json={"attributes": {"title": "Rated", "marks": [1, 2]}})
    try:
        page = visit.open("add")
        page.get_by_label("title", exact=True).fill("Unclear")
        page.get_by_label("Id", exact=True).fill("unclear")
        page.get_by_label("marks", exact=True).fill("3, four")
        page.get_by_role("button", name="Add it").click()
        page.get_by_text("“marks” is a list of numbers").wait_for()

        page.get_by_label("marks", exact=True).fill("3, 4.5")
        page.get_by_role("button", name="Another attribute").click()
        page.get_by_label("Attribute", exact=True).fill("title")
        page.get_by_label("Value", exact=True).fill("Something else")
        page.get_by_role("button", name="Add it").click()
        page.get_by_text("“title” is there twice").wait_for()
        assert service.get("/items/unclear").status_code == 404

        page.get_by_label("Attribute", exact=True).fill("country")
        page.get_by_role("button", name="Add it").click()
        page.locator("#added .neighbours").wait_for()
        assert service.get("/items/unclear").json()["attributes"] == {
            "title": "Unclear",
            "marks": [3, 4.5],
            "country": "Something else",
        }
    finally:
        service.delete("/items/unclear")
        service.delete("/items/rated")


def test_an_empty_form_says_what_it_needs(visit: Visit) -> None:
    page = visit.open("add")

    page.get_by_role("button", name="Add it").click()

    wait_for(page, lambda: page.get_by_text("at least one attribute").is_visible())
