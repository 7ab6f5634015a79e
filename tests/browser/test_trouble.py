"""What goes wrong between page and service: keys, a dead or busy service, items that are gone."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import START_S, Open, Visit
from tests.browser.looking import expect_history, recommended, search_for, wait_for
from tests.service.half_sent import HalfSent
from tests.service.running import Client, free_port, in_a_process

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]


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
    assert dialog.is_hidden()  # it was open until the key was right

    page.reload()
    assert recommended(page)
    assert dialog.is_hidden()
    assert page.evaluate("Object.values(localStorage).join()") == ""
    page.get_by_role("tab", name="Add an item").click()
    page.get_by_label("title", exact=True).fill("Ran")
    page.get_by_role("button", name="Add it").click()
    page.get_by_text("this needs the scope write").wait_for()


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
        wait_for(page, lambda: client.metric("llmemb_inflight_requests") == 6)
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
