"""What the service tells browsers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from service.settings import BadSettings, read_settings
from tests.service.conftest import Serve
from tests.service.running import Client

SHOP = "https://shop.example"
ASKED = {
    "origin": SHOP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


class Page(HTMLParser):
    """The scripts and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline = ""
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._script = tag == "script"
        self.addresses += [value for name, value in attrs if name in {"src", "href"} and value]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.inline += data.strip() if self._script else ""


def test_a_page_may_load_nothing_from_elsewhere_and_stand_in_no_frame(shared: Client) -> None:
    headers = shared.get("/docs").headers

    directives = headers["content-security-policy"].split(";")
    policy = dict(each.strip().split(" ", 1) for each in directives)
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


def test_the_page_keeps_its_own_policy(shared: Client) -> None:
    page = Page(shared.get("/docs").text)

    assert page.inline == ""
    assert len(page.addresses) == 4
    for address in page.addresses:
        answer = shared.get(httpx.URL("http://x/docs").join(address).path)
        assert answer.status_code == 200, address
    start = shared.get("/docs/start.js")
    assert start.headers["content-type"].startswith("text/javascript")
    (schema,) = re.findall(r'url: "\.(/[^"]+)"', start.text)
    assert shared.get(schema).json()["openapi"]


def test_what_is_no_page_has_no_policy(shared: Client) -> None:
    assert "content-security-policy" not in shared.get("/info").headers


def test_no_other_origin_is_let_in_unless_it_is_named(shared: Client) -> None:
    asked = shared.options("/recommend", headers=ASKED)
    answer = shared.get("/info", headers={"origin": SHOP})

    assert asked.status_code == 405
    assert not [name for name in [*asked.headers, *answer.headers] if "access-control" in name]


def test_a_named_origin_may_ask_and_still_needs_a_key(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("shop read shop-key\n")
    keys.chmod(0o600)
    client = serve(cors_origins=f"{SHOP}, http://localhost:3000", api_keys_file=keys)

    asked = client.options("/recommend", headers=ASKED)
    refused = client.get("/info", headers={"origin": SHOP})
    answer = client.get("/info", headers={"origin": SHOP, "authorization": "Bearer shop-key"})
    unasked = client.options("/recommend", headers={"origin": SHOP})

    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SHOP
    assert asked.headers["x-request-id"]
    assert "access-control-allow-credentials" not in asked.headers
    assert (refused.status_code, answer.status_code, unasked.status_code) == (401, 200, 401)
    for each in (refused, answer):  # so that the page can read why
        assert each.headers["access-control-allow-origin"] == SHOP
        assert "Retry-After" in each.headers["access-control-expose-headers"]


def test_an_origin_that_is_not_named_is_not_let_in(serve: Serve) -> None:
    client = serve(cors_origins=SHOP)

    for origin in ("https://shop.example.org", "http://shop.example", "https://a.shop.example"):
        asked = client.options("/recommend", headers={**ASKED, "origin": origin})
        answer = client.get("/info", headers={"origin": origin})

        assert asked.status_code == 400
        assert "access-control-allow-origin" not in asked.headers
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origins", ["*", "null", "https://a/", "shop.example", "https://*.a", f"{SHOP},x", "HTTPS://A"]
)
def test_what_is_no_origin_is_refused(tmp_path: Path, origins: str) -> None:
    with pytest.raises(BadSettings, match="LLMEMB_CORS_ORIGINS is .* is no origin"):
        read_settings(bundle=tmp_path, cors_origins=origins)
