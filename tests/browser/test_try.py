"""Try in a real browser: a history, and what is recommended for it."""

import re

import pytest

from tests.browser.conftest import START_S, Visit
from tests.browser.looking import (
    compare,
    expect_history,
    in_history,
    recommended,
    search_for,
    texts,
    wait_for,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]


def test_an_empty_history_teaches_how_to_begin(visit: Visit) -> None:
    page = visit.open()

    page.get_by_text("Nothing in the history yet").wait_for()
    page.locator(".start").first.click()

    assert len(in_history(page)) == 1
    assert recommended(page)


def test_a_film_is_searched_for_chosen_and_recommended_for(visit: Visit) -> None:
    page = visit.open()

    options = search_for(page, "film 7")
    assert texts(options.locator(".option-title")) == ["Film number 7"]
    options.first.click()

    expect_history(page, "Film number 7")
    assert recommended(page)[0] == "Film number 8"  # which follows it in the tiny data
    first = page.locator(".recommended > li").first
    wait_for(page, lambda: first.locator(".because").inner_text() == "because of Film number 7")
    assert {"release_year:\n1958", "genres:\nAction"} <= set(texts(first.locator(".chips li")))
    assert re.fullmatch(r"score -?[\d.]+", first.locator(".score").text_content() or "")
    wait_for(
        page, lambda: page.locator(".recommended > li").nth(1).locator(".bar span").is_visible()
    )


def test_recommendations_follow_the_history_as_it_is_moved_and_shortened(visit: Visit) -> None:
    page = visit.open(history=["2", "5"])
    expect_history(page, "Film number 2", "Film number 5")
    first = recommended(page)

    page.get_by_role("button", name="Move up: Film number 5").click()
    expect_history(page, "Film number 5", "Film number 2")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == (
        "Move down: Film number 5"  # it cannot go further up
    )
    wait_for(page, lambda: recommended(page) != first)

    page.get_by_role("button", name="Remove: Film number 5").click()
    expect_history(page, "Film number 2")
    wait_for(page, lambda: "Film number 5" in recommended(page))


def test_a_history_outlives_a_reload(visit: Visit) -> None:
    page = visit.open(history=["2", "5"])
    in_history(page)

    page.reload()

    expect_history(page, "Film number 2", "Film number 5")


def test_a_recommendation_is_added_with_its_button_and_opened_by_its_title(visit: Visit) -> None:
    page = visit.open(history=["2"])
    title = recommended(page)[0]

    page.get_by_role("button", name=f"Add to the history: {title}").click()
    expect_history(page, "Film number 2", title)
    page.locator(".recommended .title").first.click()
    drawer = page.get_by_role("dialog")
    drawer.get_by_text("Nearest to it").wait_for()

    assert len(texts(drawer.locator(".neighbours .title"))) == 8
    page.keyboard.press("Escape")
    drawer.wait_for(state="hidden")  # it was open: its neighbours were read


def test_popularity_and_ids_alone_stand_side_by_side(visit: Visit) -> None:
    page = visit.open(history=["2", "5"])
    recommended(page)

    columns = compare(page)

    assert [each.splitlines()[0] for each in texts(columns.locator("h3"))] == [
        "This service",
        "Most popular",
        "Ids only",
    ]
    ours, popular, ids = (texts(columns.nth(at).locator("li .title")) for at in range(3))
    assert popular[0] == "Film number 0"  # 6 interactions, more than any other
    assert "Film number 11" in ours  # nobody has used it; a model of ids cannot know it
    assert "Film number 11" not in ids
    wait_for(page, lambda: columns.nth(0).locator(".badge.cold").count() == 1)
    wait_for(page, lambda: columns.nth(1).locator(".badge.head").first.inner_text() == "head")
    wait_for(page, lambda: "cold" in columns.nth(0).locator(".mix").inner_text())


def test_a_way_that_knows_nothing_of_the_history_says_so(visit: Visit) -> None:
    page = visit.open(history=["11"])  # nobody has used it, so ids alone say nothing
    recommended(page)

    compare(page)

    ids = page.locator("[data-strategy=id_only]")
    ids.get_by_text("Nothing is known of this history here").wait_for()
    best = page.locator("[data-strategy=best]")
    assert len(texts(best.locator("li .title"))) > 1  # drawn, and it says nothing of the kind
    assert best.get_by_text("Nothing is known").count() == 0
