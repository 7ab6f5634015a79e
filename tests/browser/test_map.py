"""The map in a real browser."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import START_S, Open, Visit
from tests.browser.looking import expect_history, texts, wait_for
from tests.service.running import Client

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]


def pixels(page: "Page") -> str:
    """What the canvas shows once it stands still for two frames, as text."""
    shown: str = page.evaluate(
        """async () => {
          const canvas = document.querySelector("canvas");
          const frame = () => new Promise(requestAnimationFrame);
          for (let before = null, now = null; ; before = now) {
            await frame();
            await frame();
            now = canvas.toDataURL();
            if (now === before) return now;
          }
        }"""
    )
    return shown


def redrawn(page: "Page", before: str) -> str:
    """What the canvas shows when it shows something else."""
    wait_for(page, lambda: pixels(page) != before)
    return pixels(page)


def test_the_map_shows_an_item_and_its_neighbours_when_it_is_clicked(visit: Visit) -> None:
    page = visit.open("map")
    page.get_by_text("Choose an item").wait_for()
    canvas = page.locator("canvas")
    told = page.locator("#map-told").inner_text()
    assert told.startswith("12 items, coloured by interactions in training: 0, cold 1")

    before = pixels(page)
    place = page.evaluate("fetch('/map').then((answer) => answer.json())")
    at = page.evaluate(
        """({ x, y }) => {
          const box = document.querySelector("canvas").getBoundingClientRect();
          const room = 28, low = [Math.min(...x), Math.min(...y)];
          const size = [Math.max(...x) - low[0], Math.max(...y) - low[1]];
          const span = Math.max(...size);
          const [wide, high] = size.map((each) => each / span);
          const [w, h] = [Math.round(box.width), Math.round(box.height)];
          const whole = Math.min((w - 2 * room) / wide, (h - 2 * room) / high);
          return [(x[0] - low[0]) / span * whole + (w - whole * wide) / 2,
                  (high - (y[0] - low[1]) / span) * whole + (h - whole * high) / 2];
        }""",
        place,
    )
    canvas.click(position={"x": at[0], "y": at[1]})

    panel = page.locator("#map-item")
    panel.get_by_text("Nearest to it").wait_for()
    wait_for(page, lambda: panel.locator(".id code").inner_text() == place["ids"][0])
    assert len(texts(panel.locator(".neighbours .title"))) == 8
    redrawn(page, before)


def test_the_map_is_moved_and_read_by_keyboard(visit: Visit) -> None:
    page = visit.open("map")
    page.get_by_text("Choose an item").wait_for()
    canvas = page.locator("canvas")
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    views = [pixels(page)]
    for key in ("+", "ArrowLeft", "ArrowUp", "-"):
        page.keyboard.press(key)
        views.append(redrawn(page, views[-1]))
    assert len(set(views)) == len(views)

    page.keyboard.press("Enter")
    page.locator("#map-item").get_by_text("Nearest to it").wait_for()
    wait_for(page, lambda: "nearest to it" in (page.locator("#live").text_content() or ""))


def test_the_wheel_comes_closer_and_a_drag_moves(visit: Visit) -> None:
    page = visit.open("map")
    page.get_by_text("Choose an item").wait_for()
    box = page.locator("canvas").bounding_box()
    assert box
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    whole = pixels(page)

    page.mouse.move(*middle)
    page.mouse.wheel(0, -400)
    closer = redrawn(page, whole)
    page.mouse.down()
    page.mouse.move(middle[0] + 90, middle[1] + 40, steps=4)
    page.mouse.up()
    moved = redrawn(page, closer)
    assert moved != whole
    page.get_by_role("button", name="See all").click()

    wait_for(page, lambda: pixels(page) == whole)


def test_the_map_is_coloured_by_an_attribute_and_says_so(visit: Visit) -> None:
    page = visit.open("map")
    page.get_by_label("Colour by").select_option("genres")

    legend = page.get_by_role("list", name="Legend").get_by_role("button")
    wait_for(page, lambda: sorted(texts(legend))[0].startswith("Action"))
    assert [each.split()[0] for each in sorted(texts(legend))] == [
        "Action",
        "Comedy",
        "Drama",
        "Horror",
    ]
    before = pixels(page)
    legend.first.click()
    wait_for(page, lambda: legend.first.get_attribute("aria-pressed") == "false")
    redrawn(page, before)


def test_points_keep_their_colours_when_the_catalogue_changes_behind_the_map(
    own_service: Callable[..., Client], visiting: Open
) -> None:
    client = own_service()
    page = visiting(client.port).open("map")
    page.get_by_text("Choose an item").wait_for()
    ids = client.get("/map").json()["ids"]
    assert ids.index("9") < ids.index("7")
    client.delete("/items/9")  # a point that stays until the map is drawn again

    page.get_by_label("Colour by").select_option("genres")
    legend = page.get_by_role("list", name="Legend").get_by_role("button")
    wait_for(page, lambda: sorted(texts(legend))[0].startswith("Action"))
    assert [" ".join(each.split()) for each in sorted(texts(legend))] == [
        *("Action 3", "Comedy 2", "Drama 3", "Horror 3"),
        "others 1",
    ]

    page.get_by_role("combobox", name="Find an item on the map").fill("film 7")
    page.get_by_role("listbox").get_by_role("option").first.click()
    page.locator("#map-item").get_by_text("Horror, Comedy").wait_for()
    pixels(page)
    in_the_middle, in_the_legend = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas");
          const at = [Math.round(canvas.width / 2), Math.round(canvas.height / 2)];
          const [r, g, b] = canvas.getContext("2d").getImageData(...at, 1, 1).data;
          const key = [...document.querySelectorAll(".legend .key")]
            .find((each) => each.textContent.startsWith("Horror"));
          const { backgroundColor } = getComputedStyle(key.querySelector(".swatch"));
          return [`rgb(${r}, ${g}, ${b})`, backgroundColor];
        }"""
    )
    assert in_the_middle == in_the_legend


def test_an_item_is_found_on_the_map_by_its_name(visit: Visit) -> None:
    page = visit.open("map")
    page.get_by_role("combobox", name="Find an item on the map").fill("film 7")
    page.get_by_role("listbox").get_by_role("option").first.click()

    panel = page.locator("#map-item")
    panel.get_by_role("heading", name="Film number 7").wait_for()
    panel.get_by_role("button", name="Add to the history").click()
    page.get_by_role("tab", name="Try").click()
    expect_history(page, "Film number 7")
