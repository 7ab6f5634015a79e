"""Pictures of the page for the documents: `python -m tests.browser.screenshots --bundle DIR`.

They show the bundle of `make demo`; a history of another one is given with --history. Fonts are
those of the machine: the page asks for Inter (on Debian: `apt install fonts-inter`), then for the
system's own.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.chromium import MISSING, find_chromium, running_browser
from tests.service.running import ROOT, Client, free_port, in_a_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DOCS = ROOT / "docs"
HISTORY = ["59", "60", "170"]  # MovieLens-100K: Three Colors: Red and Blue, Cinema Paradiso
FOUND = "star wars"
COLOUR = "genres"
SIZE = {"width": 1120, "height": 780}
MOST_BYTES = 200_000
STORE = "ids => sessionStorage.setItem('llmemb.history', JSON.stringify(ids))"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a bundle and write docs/page-*.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="folder of an exported bundle")
    parser.add_argument("--history", nargs="+", default=HISTORY, help="ids, oldest first")
    parser.add_argument("--find", default=FOUND, help="words of an item to choose on the map")
    parser.add_argument("--colour", default=COLOUR, help="attribute that colours the map")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of the pictures")
    given = parser.parse_args(arguments)
    chromium = find_chromium()
    if chromium is None:
        parser.error(MISSING)
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as catalogue,
        in_a_process(given.bundle, Path(catalogue), port, LLMEMB_DTYPE="auto") as process,
        Client(port) as client,
        running_browser(str(chromium)) as browser,
    ):
        client.wait_until_ready(process, longest_s=600)
        address = f"http://127.0.0.1:{port}/"
        shots: dict[str, Callable[[Page], None]] = {
            "page-try": _compare,
            "page-map": lambda page: _map(page, given.find, given.colour),
        }
        for name, prepare in shots.items():
            page = _open(browser, f"{address}#{name.removeprefix('page-')}", given.history)
            prepare(page)
            path = given.output / f"{name}.png"
            page.screenshot(path=path, animations="disabled")
            page.context.close()
            size = path.stat().st_size
            if size > MOST_BYTES:
                raise SystemExit(f"{path} has {size} bytes; a picture has {MOST_BYTES} at most")


def _open(browser: "Browser", address: str, history: Sequence[str]) -> "Page":
    context = browser.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address.partition("#")[0])
    page.evaluate(STORE, list(history))
    page.goto("about:blank")
    page.goto(address)
    return page


def _compare(page: "Page") -> None:
    page.locator(".recommended > li").first.wait_for()
    page.wait_for_load_state("networkidle")


def _map(page: "Page", words: str, attribute: str) -> None:
    page.get_by_label("Colour by").select_option(attribute)
    page.get_by_role("combobox", name="Find an item on the map").fill(words)
    page.get_by_role("listbox").get_by_role("option").first.click()
    page.locator("#map-item").get_by_text("Nearest to it").wait_for()
    page.locator("#panel-map").get_by_role("button", name="See all").click()
    page.locator(".map-frame").evaluate("frame => frame.scrollIntoView()")
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)


if __name__ == "__main__":
    main()
