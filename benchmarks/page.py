"""How soon the page is there, and what it weighs: `python -m benchmarks.page --bundle BUNDLE`.

A fresh visitor each time, in the Chromium of this machine, against the real service beside it;
`scripts/install.sh service,training,test,browser` and `scripts/chromium.sh` bring what it takes.
"""

import argparse
import statistics
import sys
from pathlib import Path

from benchmarks.figures import machine, record
from benchmarks.serving.servers import ours
from tests.browser.chromium import MISSING, find_chromium, running_browser

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main() -> None:
    """Visit the page some times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--visits", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print figures, write none")
    given = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit(MISSING)
    print(machine(), flush=True)
    painted: list[float] = []
    sizes: list[int] = []
    with ours(given.bundle) as server, running_browser(chromium) as browser:
        for visit in range(given.visits):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            answers: list[int] = []
            page.on("response", lambda answer, to=answers: to.append(len(answer.body())))
            page.goto(f"http://127.0.0.1:{server.port}/", wait_until="networkidle")
            painted.append(float(page.evaluate(PAINTED)))
            sizes.append(sum(answers))
            context.close()
            print(f"visit {visit + 1}: {painted[-1]:.0f} ms, {sizes[-1]:,} bytes", flush=True)
    figures: dict[str, tuple[float, str]] = {
        "page.first_paint_ms": (
            round(statistics.median(painted)),
            f"ms from a new visitor's click to the first content, median of {given.visits}; at "
            f"most {max(painted):.0f}",
        ),
        "page.weight_kb": (
            round(max(sizes) / 1000),
            "kB of all that the page asks for until it is at rest, without compression",
        ),
    }
    for name, (value, unit) in figures.items():
        print(f"{name} = {value} {unit}")
    if not given.dry_run:
        record(figures, "python -m benchmarks.page --bundle BUNDLE")


if __name__ == "__main__":
    main()
