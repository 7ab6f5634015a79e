"""`make bench`: what can be measured without data of your own, one after the other."""

import subprocess
import sys
from pathlib import Path

DEMO = Path("runs/demo")
ALL = {
    "quality": [],  # of MovieLens-100K, three seeds
    "recall": ["--set", f"folder={DEMO}"],
    "int8": ["--set", f"folder={DEMO}"],
    "scft": [],
    "memory": [],
    "kills": [],
    "index": [],
    "catalogue": ["scale"],
    "serve": ["all", "--bundle", str(DEMO / "bundle")],
}


def main() -> None:
    """Run them; they write docs/figures.json."""
    if not (DEMO / "bundle").exists():
        sys.exit(f"there is no {DEMO}/bundle to measure; run `make demo` first")
    for name, arguments in ALL.items():
        print(f"== {name}", flush=True)
        told = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=False)
        if told.returncode:
            sys.exit(told.returncode)


if __name__ == "__main__":
    main()
