"""The files of the page that people try the service on; tests/browser looks at the page itself."""

import re

import httpx
import pytest

from service.routes.web import FOLDER
from tests.service.running import Client
from tests.service.test_browsers import Page

MOST_BYTES = 300_000


def policy(answer: httpx.Response) -> dict[str, str]:
    directives = answer.headers["content-security-policy"].split(";")
    return dict(each.strip().split(" ", 1) for each in directives)


def test_the_page_allows_nothing_inline_and_nothing_from_elsewhere(shared: Client) -> None:
    answer = shared.get("/")

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    told = policy(answer)
    assert told["default-src"] == told["form-action"] == told["frame-ancestors"] == "'none'"
    assert told["script-src"] == told["style-src"] == told["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"


def test_the_page_keeps_that_policy(shared: Client) -> None:
    html = shared.get("/").text
    page = Page(html)

    assert page.inline == ""
    assert " style=" not in html
    loaded = [each for each in page.addresses if each.startswith("./web/")]
    assert len(loaded) >= 10
    for address in loaded:
        answer = shared.get(address.removeprefix("."))
        assert answer.status_code == 200, address


def test_scripts_import_only_what_is_there_and_name_no_other_host(shared: Client) -> None:
    for path in FOLDER.iterdir():
        text = shared.get(f"/web/{path.name}").text
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert (FOLDER / module).is_file(), (path.name, module)
        hosts = set(re.findall(r"https?://[^/\s\"']+", text)) - {"http://www.w3.org"}  # SVG's name
        assert not hosts, path.name


def test_all_files_together_are_light() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


@pytest.mark.parametrize(
    ("name", "kind"),
    [("page.js", "text/javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")],
)
def test_a_file_has_its_type_and_is_sent_once(shared: Client, name: str, kind: str) -> None:
    answer = shared.get(f"/web/{name}")
    again = shared.get(f"/web/{name}", headers={"if-none-match": answer.headers["etag"]})

    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("told", ["{}", "W/{}", '"other", W/{}', '"other","more" , {}', "*"])
def test_a_tag_that_a_proxy_weakened_or_listed_is_known(shared: Client, told: str) -> None:
    tag = shared.get("/").headers["etag"]

    again = shared.get("/", headers={"if-none-match": told.format(tag)})
    other = shared.get("/", headers={"if-none-match": 'W/"other", "more"'})

    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200


@pytest.mark.parametrize("path", ["/web/", "/web/nope.js", "/web/..%2Fapp.py", "/web/a/b"])
def test_no_other_file_is_served(shared: Client, path: str) -> None:
    answer = shared.get(
        httpx.URL(f"http://127.0.0.1:{shared.port}").copy_with(raw_path=path.encode())
    )

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
