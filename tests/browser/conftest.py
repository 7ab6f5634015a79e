"""Fixtures of the browser's tests. BROWSER_REQUIRED=1 makes a missing browser a failure."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.browser.chromium import MISSING, find_chromium, running_browser
from tests.service.running import Client, free_port, in_a_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

PATIENCE_S = 40  # of a machine that does much else
START_S = 300
ADD = "id => import('/web/history.js').then(({ history }) => history.add(id))"


def unavailable(reason: str) -> None:
    if os.environ.get("BROWSER_REQUIRED"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        unavailable("playwright is not installed: `pip install -c constraints.txt '.[browser]'`")
    path = find_chromium()
    if path is None:
        unavailable(MISSING)
    with running_browser(str(path)) as running:
        yield running


class Visit:
    """One visitor's page of a service, and what went on in it.

    Attributes:
        errors: of the console and of scripts, but for statuses that the test expects.
        requests: addresses that were asked for.
    """

    def __init__(self, browser: "Browser", port: int, **context: object) -> None:
        self.address = f"http://127.0.0.1:{port}/"
        context = {"reduced_motion": "reduce", "viewport": {"width": 1280, "height": 900}} | context
        self.context = browser.new_context(**context)  # type: ignore[arg-type]
        self.context.set_default_timeout(1000 * PATIENCE_S)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._expected: tuple[str, ...] = ()
        self.page.on("console", self._noted)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)

    def expect(self, *texts: str) -> None:
        """Console errors that hold one of these are part of the test."""
        self._expected = texts

    def open(self, tab: str = "try", history: list[str] | None = None) -> "Page":
        self.page.goto(f"{self.address}#{tab}")
        for item_id in history or []:
            self.page.evaluate(ADD, item_id)
        return self.page

    def _noted(self, message: "ConsoleMessage") -> None:
        if message.type in {"error", "warning"} and not any(
            each in message.text for each in self._expected
        ):
            self.errors.append(f"{message.text} ({message.location['url']})")

    def _asked(self, request: "Request") -> None:
        self.requests.append(request.url)

    def close(self) -> None:
        """End it.

        Raises:
            AssertionError: the console told an error, or another host was asked.
        """
        self.context.close()
        assert not self.errors
        here = urlsplit(self.address).netloc
        elsewhere = [each for each in self.requests if urlsplit(each).netloc != here]
        assert not elsewhere


Open = Callable[..., Visit]


@pytest.fixture
def visiting(browser: "Browser") -> Iterator[Open]:
    """Visit services by their ports; at the end no visit may have had an error."""
    visits: list[Visit] = []

    def visit(port: int, **context: object) -> Visit:
        visits.append(Visit(browser, port, **context))
        return visits[-1]

    yield visit
    for each in visits:
        each.close()


@contextmanager
def serving(bundle: Path, catalogue: Path, **env: str) -> Iterator[Client]:
    """The service in a process of its own, ready."""
    port = free_port()
    with in_a_process(bundle, catalogue, port, **env) as process, Client(port) as client:
        client.wait_until_ready(process, START_S)
        yield client


@pytest.fixture(scope="session")
def service(
    browser: "Browser", tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A service that tests share; what one adds, it takes out again."""
    with serving(tiny_bundle, tmp_path_factory.mktemp("browser")) as client:
        yield client


@pytest.fixture
def own_service(
    browser: "Browser", tiny_bundle: Path, tmp_path: Path
) -> Iterator[Callable[..., Client]]:
    """Start services of this test's own."""
    with ExitStack() as stack:
        yield lambda **env: stack.enter_context(serving(tiny_bundle, tmp_path / "own", **env))


@pytest.fixture
def visit(service: Client, visiting: Open) -> Visit:
    """A visit of the shared service."""
    return visiting(service.port)
