"""Recommendation quality over seeds: id-only against ours, on a finished run's LLM vectors.

Trains and evaluates the `rat` step anew for every seed. Differences are paired: of each user, the
mean over seeds of ours minus id-only, bootstrapped over users.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import record
from training.evaluate import evaluate, measure
from training.metrics import hit_rate, interval, ndcg
from training.rat import rat
from training.recipe import Run, read_config

STEPS = ("prepare", "scft", "encode")


def main() -> None:
    """Run it and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    parser.add_argument("--config", type=Path, default=Path("training/configs/ml-100k.toml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--name", default="ml100k", help="prefix of the figures' ids")
    given = parser.parse_args()
    started = time.monotonic()

    per_seed = []
    for seed in range(1, given.seeds + 1):
        folder = Path("runs") / f"{given.name}-seed-{seed}"
        changes = [*given.changes, f"folder={folder}", f"rat.seed={seed}"]
        run = Run(read_config(given.config, changes))
        for step in STEPS:
            if not (folder / step).exists():
                shutil.copytree(given.run / step, folder / step)
        rat(run)
        evaluate(run)
        ranks, split, _ = measure(run)
        weights = run.finished("rat").facts["weights"]
        print(f"seed {seed}: weights {json.dumps(weights)}", flush=True)
        per_seed.append(ranks)

    head = split.head()[split.test]
    groups = {"overall": np.ones(len(head), bool), "head": head, "tail": ~head}
    values: dict[str, tuple[float, str]] = {}
    for protocol in ("full", "sampled"):
        print(f"\n### {protocol}\n")
        print("| group | targets | model | HR@10 (sd over seeds) | NDCG@10 (sd over seeds) |")
        print("|---|--:|---|---|---|")
        for group, members in groups.items():
            paired = {}
            for name, metric in (("hr", hit_rate), ("ndcg", ndcg)):
                for model in ("id-only", "ours"):
                    found = np.array([metric(r[protocol][model][members], 10) for r in per_seed])
                    paired[model, name] = found  # (seeds, users)
            for model in ("id-only", "ours"):
                cells = []
                for name in ("hr", "ndcg"):
                    means = paired[model, name].mean(axis=1)
                    cells.append(f"{means.mean():.4f} ({means.std(ddof=1):.4f})")
                    key = f"{given.name}.{protocol}.{model}.{group}.{name}10"
                    values[key] = (round(float(means.mean()), 4), f"mean of {len(means)} seeds")
                print(f"| {group} | {members.sum()} | {model} | {cells[0]} | {cells[1]} |")
            cells = []
            for name in ("hr", "ndcg"):
                gain = (paired["ours", name] - paired["id-only", name]).mean(axis=0)
                low, high = interval(gain, 5000)
                cells.append(f"{gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
                key = f"{given.name}.{protocol}.difference.{group}.{name}10"
                values[key] = (round(float(gain.mean()), 4), f"95 % [{low:+.4f}, {high:+.4f}]")
            print(
                f"| {group} | {members.sum()} | ours - id-only, paired 95 % | {' | '.join(cells)} |"
            )
    minutes = (time.monotonic() - started) / 60
    print(f"\n{given.seeds} seeds in {minutes:.0f} minutes")
    record(values, f"python -m benchmarks.quality --run {given.run} --seeds {given.seeds}")


if __name__ == "__main__":
    main()
