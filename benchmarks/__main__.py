"""`make bench`: every measurement, one after the other, on the demo's run."""

import subprocess
import sys
from pathlib import Path

ALL = ("quality", "kills")


def main() -> None:
    """Run them; they write docs/figures.json."""
    if not Path("runs/demo/bundle").exists():
        sys.exit("there is no runs/demo/bundle to measure; run `make demo` first")
    for name in ALL:
        print(f"== {name}", flush=True)
        told = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False)
        if told.returncode:
            sys.exit(told.returncode)


if __name__ == "__main__":
    main()
