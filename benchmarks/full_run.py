"""How long a whole run takes from the data to a trained recommender, and how much memory.

Runs the steps one after the other, each in a process of its own, in a folder and a cache that are
new: nothing is reused but the LLM, which is fetched before.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import record
from training.config import read_config
from training.fetch import llm_folder

STEPS = ("prepare", "scft", "encode", "rat")


def main() -> None:
    """Run the steps, print their times, and record the sum and the largest memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--config", type=Path, default=Path("training/configs/amazon-beauty-scft.toml")
    )
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--folder", type=Path, default=Path("runs/full-run"), help="must be new")
    parser.add_argument("--name", default="beauty", help="prefix of the figures' ids")
    given = parser.parse_args()
    if given.folder.exists():
        sys.exit(f"{given.folder} is there already, and would be reused; move it, or name another")
    cache = given.folder / "cache"
    changes = [*given.set, f"folder={given.folder}/run", f"cache={cache}"]
    config = read_config(given.config, changes, given.source)
    llm_folder(config.llm.path, config.llm.revision, cache)
    options = ["--config", str(given.config), *(f"--set={change}" for change in changes)]
    options += ["--source", given.source] if given.source else []
    times = {}
    for step in STEPS:
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "training", step, *options], check=True)
        times[step] = (time.monotonic() - started) / 60
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # GiB, so far
        print(f"{step}: {times[step]:.1f} min, at most {largest:.2f} GiB", flush=True)
    told = ", ".join(f"{step} {minutes:.1f}" for step, minutes in times.items())
    command = f"python -m benchmarks.full_run --config {given.config} --name {given.name}"
    command += "".join(f" --set {change}" for change in given.set)
    command += " --source DIR" if given.source else ""
    values = {
        f"{given.name}.full_run_min": (round(sum(times.values()), 1), f"minutes: {told}"),
        f"{given.name}.full_run_gib": (round(largest, 2), "GiB, the largest resident memory"),
    }
    record(values, command)


if __name__ == "__main__":
    main()
