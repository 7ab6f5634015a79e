"""Does memory grow with the catalogue? `encode --items` of a small one and of a large one.

Each is a process of its own with a random LLM of two layers, so that a million items end. Items
differ in length, as real ones do. The figure is the largest resident memory of the large one over
that of the small one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import record
from tests.tiny import write_llm

WORDS = [
    "river",
    "night",
    "light",
    "garden",
    "winter",
    "stone",
    "paper",
    "train",
    "island",
    "morning",
]
CONFIG = """
name = "memory"
folder = "{folder}/run"
cache = "{folder}/cache"
[data]
source = "tabular"
path = "{folder}/none"
[llm]
path = "{llm}"
dtype = "float32"
[scft]
steps = 0
"""


def main() -> None:
    """Encode both, print memory and speed, and record the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for items and vectors; 1 GB")
    parser.add_argument("--dry-run", action="store_true", help="write no figure")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        folder = Path(work)
        llm = write_llm(folder / "llm")
        config = folder / "run.toml"
        config.write_text(CONFIG.format(folder=folder, llm=llm))
        small, large = (peak(folder, config, count) for count in (given.small, given.large))
    values = {
        "encode.memory_growth": (
            round(large / small, 3),
            f"largest resident memory of {given.large:,} items ({large / 2**20:.0f} MiB) over "
            f"that of {given.small:,}; two layers",
        )
    }
    print(values)
    command = "python -m benchmarks.memory"
    for name in ("small", "large"):
        value = getattr(given, name)
        command += f" --{name} {value}" if value != parser.get_default(name) else ""
    if not given.dry_run:
        record(values, command)


def peak(folder: Path, config: Path, count: int) -> int:
    """The largest resident memory, in bytes, of a process that encodes so many items."""
    items, output = folder / f"{count}.jsonl", folder / f"{count}.vectors"
    write_items(items, count)
    options = ["--config", str(config), "--items", str(items), "--output", str(output)]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "encode", *options], stderr=subprocess.DEVNULL
    )
    # Of this child alone: what a parent knows of all its children is the largest of them.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"encode of {count} items ended with {process.returncode}")
    done = json.loads((output / "done.json").read_text())
    if done["items"] != count:
        sys.exit(f"{done['items']} of {count} items have a vector")
    seconds = time.monotonic() - started
    print(
        f"{count:,} items: {used.ru_maxrss / 2**10:.0f} MiB at most, {count / seconds:.0f} items/s",
        flush=True,
    )
    return used.ru_maxrss * 2**10


def write_items(path: Path, count: int) -> None:
    """Films with titles of one to eight words."""
    random = np.random.default_rng(0)
    with path.open("w") as lines:
        for start in range(0, count, 10_000):
            few = min(10_000, count - start)
            words = random.integers(len(WORDS), size=(few, 8))
            lengths = random.integers(1, 9, size=few)
            for number in range(few):
                title = " ".join(WORDS[word] for word in words[number, : lengths[number]])
                attributes = {"title": title, "year": int(1900 + words[number].sum())}
                item = {"item_id": f"item-{start + number}", "attributes": attributes}
                lines.write(json.dumps(item) + "\n")


if __name__ == "__main__":
    main()
