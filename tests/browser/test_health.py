"""Health in a real browser: what is served, and how it fares."""

import pytest

from tests.browser.conftest import START_S, Visit
from tests.browser.looking import wait_for
from tests.service.running import Client

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3 * START_S)]


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
