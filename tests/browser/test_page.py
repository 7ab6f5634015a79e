"""The page in a real browser, against the real service."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import PATIENCE_S, START_S, Open, Visit
from tests.service.half_sent import HalfSent
from tests.service.running import Client, free_port, in_a_process

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]

KILOBYTE = 1000


def texts(locator: "Locator") -> list[str]:
    locator.first.wait_for()
    return [each.strip() for each in locator.all_inner_texts()]


def recommended(page: "Page") -> list[str]:
    return texts(page.locator(".recommended > li .title"))


def in_history(page: "Page") -> list[str]:
    return texts(page.locator(".history > li .title"))


def wait_for(page: "Page", found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, page.locator("main").inner_text()
        page.wait_for_timeout(50)


def search_for(page: "Page", words: str) -> "Locator":
    page.get_by_role("combobox", name="Search the catalogue").fill(words)
    options = page.get_by_role("listbox").get_by_role("option")
    options.first.wait_for()
    return options


def expect_history(page: "Page", *titles: str) -> None:
    wait_for(page, lambda: in_history(page) == list(titles))


# --- Try -------------------------------------------------------------------------------------


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
    wait_for(page, lambda: not drawer.is_visible())


def test_popularity_and_ids_alone_stand_side_by_side(visit: Visit) -> None:
    page = visit.open(history=["2", "5"])
    recommended(page)

    page.get_by_role("switch").check()
    columns = page.locator(".column")
    wait_for(page, lambda: columns.count() == 3)

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

    page.get_by_role("switch").check()

    ids = page.locator("[data-strategy=id_only]")
    ids.get_by_text("Nothing is known of this history here").wait_for()
    wait_for(
        page,
        lambda: (
            not page.locator("[data-strategy=best]").get_by_text("Nothing is known").is_visible()
        ),
    )


# --- keyboard --------------------------------------------------------------------------------


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
    wait_for(page, lambda: page.get_by_role("listbox").count() == 0)  # it closed

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


# --- Add an item -----------------------------------------------------------------------------


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


# --- Map -------------------------------------------------------------------------------------


def pixels(page: "Page") -> int:
    """A number that changes with what the canvas shows."""
    page.wait_for_timeout(120)
    drawn: int = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas");
          let sum = 0;
          for (const letter of canvas.toDataURL()) sum = (sum * 31 + letter.charCodeAt()) % 1e9;
          return sum;
        }"""
    )
    return drawn


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
    assert pixels(page) != before


def test_the_map_is_moved_and_read_by_keyboard(visit: Visit) -> None:
    page = visit.open("map")
    page.get_by_text("Choose an item").wait_for()
    canvas = page.locator("canvas")
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    views = [pixels(page)]
    for key in ("+", "ArrowLeft", "ArrowUp", "-"):
        page.keyboard.press(key)
        views.append(pixels(page))
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
    closer = pixels(page)
    page.mouse.down()
    page.mouse.move(middle[0] + 90, middle[1] + 40, steps=4)
    page.mouse.up()
    moved = pixels(page)
    page.get_by_role("button", name="See all").click()

    assert len({whole, closer, moved}) == 3


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
    assert pixels(page) != before


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


# --- Health ----------------------------------------------------------------------------------


def test_health_tells_what_is_served_and_how_it_fares(visit: Visit, service: Client) -> None:
    page = visit.open("health")
    page.get_by_text("Ready, and nothing is missing.").wait_for()
    wait_for(page, lambda: page.locator("#now-rate").inner_text() != "…")

    for _ in range(20):
        service.recommended(["1"])
    wait_for(page, lambda: float(page.locator("#now-rate").inner_text()) > 0)

    info = service.get("/info").json()
    told = page.locator("#panel-health").inner_text()
    assert info["bundle"][:12] in told
    assert "tiny-llama" in told
    wait_for(page, lambda: page.locator("#now-index").inner_text() == str(info["items"]))
    assert "Nothing was measured when this bundle was exported." in told
    assert "Redis" not in told


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ("leave-one-out; full: …", "Of 9 users the latest film was kept aside."),
        ("split by time: the latest tenth …", "All that came after one moment was kept aside"),
    ],
)
def test_health_says_how_the_run_was_split(visit: Visit, protocol: str, told: str) -> None:
    figures = {"overall": {"hr": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
    metrics = {"k": 10, "protocol": protocol, "targets": {"overall": 9}, "full": {"ours": figures}}
    visit.page.route(
        "**/info",
        lambda route: route.fulfill(json={**route.fetch().json(), "metrics": metrics}),
    )

    lead = visit.open("health").locator("#panel-health .lead")

    lead.wait_for()
    assert told in lead.inner_text()
    assert ("latest film" in lead.inner_text()) == protocol.startswith("leave-one-out")


# --- keys ------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("reader read reader-key\n")
    path.chmod(0o600)
    return path


def test_a_key_is_asked_for_kept_in_the_tab_and_its_scope_is_told(
    own_service: Callable[..., Client], visiting: Open, keys: Path
) -> None:
    client = own_service(LLMEMB_API_KEYS_FILE=str(keys))
    visit = visiting(client.port)
    visit.expect("401", "403")
    page = visit.open()
    dialog = page.get_by_role("dialog", name="This service asks for a key")
    dialog.wait_for()
    assert page.evaluate("document.activeElement.id") == "key-input"

    for unsendable in ("schlüssel-€", "two words"):
        page.get_by_label("API key").fill(unsendable)
        page.get_by_role("button", name="Use this key").click()
        dialog.get_by_text("letters, digits and signs of ASCII").wait_for()
        assert page.evaluate("sessionStorage.getItem('llmemb.key')") is None
    page.get_by_label("API key").fill("wrong-key")
    page.get_by_role("button", name="Use this key").click()
    dialog.get_by_text("That key is not known here").wait_for()
    page.get_by_label("API key").fill("reader-key")
    page.keyboard.press("Enter")
    page.locator(".start").first.click()
    assert recommended(page)

    page.reload()
    assert recommended(page)
    wait_for(page, lambda: not dialog.is_visible())
    assert page.evaluate("Object.values(localStorage).join()") == ""
    page.get_by_role("tab", name="Add an item").click()
    page.get_by_label("title", exact=True).fill("Ran")
    page.get_by_role("button", name="Add it").click()
    page.get_by_text("this needs the scope write").wait_for()


# --- what goes wrong -------------------------------------------------------------------------


def test_a_service_that_dies_is_told_of_and_all_goes_on_when_it_is_back(
    browser: object,
    tiny_bundle: Path,
    tmp_path: Path,
    visiting: Open,
) -> None:
    port = free_port()
    phases: list[str] = []

    def process() -> Any:  # noqa: ANN401
        return in_a_process(tiny_bundle, tmp_path / "catalogue", port)

    with process() as first, Client(port) as client:
        client.wait_until_ready(first, START_S)
        visit = visiting(port)
        visit.expect("ERR_CONNECTION", "503", "ERR_EMPTY")
        page = visit.open(history=["2"])
        recommended(page)
        first.send_signal(signal.SIGKILL)
        first.wait()

    page.get_by_role("button", name="Clear").wait_for()
    search = page.get_by_role("combobox", name="Search the catalogue")
    search.fill("film 5")
    banner = page.locator("#banner")
    banner.get_by_text("The service does not answer").wait_for()

    with process() as second:
        deadline = time.monotonic() + START_S
        while banner.is_visible():
            assert time.monotonic() < deadline
            phases.append(banner.inner_text())
            page.wait_for_timeout(50)
        assert second.poll() is None
        page.get_by_text("The service answers again.").wait_for()
        assert any(each.startswith("Not ready yet: ") for each in phases), set(phases)
        search_for(page, "film 5").first.click()
        expect_history(page, "Film number 2", "Film number 5")
        assert recommended(page)


def test_a_busy_service_is_waited_for_as_long_as_it_asks(
    own_service: Callable[..., Client], visiting: Open
) -> None:
    client = own_service(LLMEMB_MAX_REQUESTS="6")
    visit = visiting(client.port)
    visit.expect("429")
    page = visit.open(history=["2"])
    first = recommended(page)

    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(HalfSent(client.port))
        page.wait_for_timeout(300)
        page.get_by_role("button", name="Add to the history").first.click()
        page.locator("#results-status").get_by_text("The service is busy").wait_for()
        assert recommended(page) == first  # still there

    wait_for(page, lambda: "busy" not in page.locator("#results-status").inner_text())
    wait_for(page, lambda: first[0] not in recommended(page))


def test_an_item_that_was_deleted_meanwhile_leaves_the_history_with_a_notice(
    visit: Visit, service: Client
) -> None:
    for item_id in ("gone-1", "gone-2"):
        service.put(f"/items/{item_id}", json={"attributes": {"title": f"Gone {item_id}"}})
    page = visit.open(history=["gone-1", "2", "gone-2"])
    recommended(page)
    service.delete("/items/gone-1")
    service.delete("/items/gone-2")

    page.get_by_role("button", name="Move up: Film number 2").click()

    notices = page.locator("#notices")
    notices.get_by_text("no longer in the catalogue").wait_for()
    wait_for(page, lambda: "“Gone gone-1”" in notices.inner_text())
    expect_history(page, "Film number 2")
    assert recommended(page)


def test_a_history_of_which_nothing_is_left_begins_anew(visit: Visit, service: Client) -> None:
    visit.expect("404")
    service.put("/items/gone", json={"attributes": {"title": "Gone"}})
    page = visit.open(history=["gone"])
    recommended(page)
    service.delete("/items/gone")

    page.reload()

    page.locator("#notices").get_by_text("no longer in the catalogue").wait_for()
    page.get_by_text("Nothing in the history yet").wait_for()


def test_a_history_that_is_unknown_and_then_known_again_is_no_notice_and_no_waiting(
    visit: Visit,
) -> None:
    visit.expect("404")
    detail = "the catalogue has none of the history's items"
    visit.page.route(
        "**/recommend", lambda route: route.fulfill(status=404, json={"detail": detail})
    )

    page = visit.open(history=["2"])

    page.locator("#results").get_by_text(detail).wait_for()
    wait_for(page, lambda: page.locator("#results").inner_text() == detail)
    wait_for(page, lambda: page.locator("#notices").inner_text() == "")
    wait_for(page, lambda: page.locator("#results").get_attribute("aria-busy") is None)
    expect_history(page, "Film number 2")


# --- for everybody ---------------------------------------------------------------------------

TABS = ["try", "add", "map", "health"]


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
    page.wait_for_load_state("networkidle") if tab != "health" else page.wait_for_timeout(2500)

    assert violations(page) == []

    if tab == "try":
        page.get_by_role("switch").check()
        page.wait_for_timeout(800)
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
    page.wait_for_timeout(1500)
    if tab == "try":
        page.get_by_role("switch").check()
        page.wait_for_timeout(800)

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


def test_the_page_is_light_and_painted_within_a_second(visit: Visit) -> None:
    sizes: list[int] = []
    visit.page.on("response", lambda answer: sizes.append(len(answer.body())))
    page = visit.open(history=["2"])
    recommended(page)
    page.wait_for_timeout(500)

    assert 20 * KILOBYTE < sum(sizes) < 300 * KILOBYTE
    painted = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? Infinity"
    )
    assert painted < 5000  # a loaded machine; a second on one at rest


def test_nothing_that_a_catalogue_says_becomes_markup(visit: Visit, service: Client) -> None:
    evil = "<img src=x onerror=document.title='taken'>"
    service.put("/items/evil", json={"attributes": {"title": evil, "genres": [evil]}})
    try:
        page = visit.open(history=["evil"])
        expect_history(page, evil)
        page.wait_for_timeout(300)
        assert page.title() != "taken"
        assert page.locator("main img").count() == 0
    finally:
        service.delete("/items/evil")


def test_a_prefix_of_a_proxy_changes_nothing(service: Client) -> None:
    html = service.get("/").text
    assert not re.findall(r'(?:src|href)="/', html)


def test_the_command_for_screenshots_says_how_it_is_used() -> None:
    import sys

    told = subprocess.run(
        [sys.executable, "-m", "tests.browser.screenshots", "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert "--bundle" in told
