"""Does the candidate step of a large catalogue lose anything that scoring all of it would find?

Recommends to users of the run's test split twice, on the run's bundle: with every item scored,
and with candidates of each view at the service's default sizes.
"""

import argparse
import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.figures import record
from models.bundle import Bundle
from service.metrics import Metrics
from service.recommender import Recommender
from service.store import CatalogueStore
from training.config import read_config
from training.prepare import read_prepared
from training.recipe import Run

K = 10


def main() -> None:
    """Compare them and record the recall."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("training/configs/ml-100k.toml"))
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--name", default="ml100k", help="prefix of the figure's id")
    given = parser.parse_args()
    run = Run(read_config(given.config, given.set, given.source))
    catalogue, split = read_prepared(run)
    users = np.random.default_rng(0).permutation(len(split.test))[: given.users]
    known = split.test_histories
    histories = [[catalogue[row - 1].item_id for row in known[user]] for user in users]
    bundle = Bundle.open(run.folder / "bundle")
    metrics = Metrics()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as searches:
        store = CatalogueStore.open(Path(folder), bundle)

        def recommended(score_all: int) -> list[set[str]]:
            recommender = Recommender(bundle, store, searches, metrics, score_all)

            async def ask() -> list[set[str]]:
                found = [await recommender.recommend(history, K, [], True) for history in histories]
                return [{item_id for item_id, _ in each.items} for each in found]

            return asyncio.run(ask())

        everything, candidates = recommended(len(catalogue)), recommended(0)
        store.close()
    found = [len(all_ & few) / len(all_) for all_, few in zip(everything, candidates, strict=True)]
    recall = float(np.mean(found))
    print(
        f"recall@{K} of the candidate step: {recall:.5f}, the worst of {len(found)}: {min(found)}"
    )
    unit = f"share of the first {K} of {len(found)} users, {len(catalogue)} items"
    command = f"python -m benchmarks.recall --config {given.config} --name {given.name}"
    command += "".join(f" --set {change}" for change in given.set)
    command += " --source DIR" if given.source else ""
    record({f"{given.name}.candidate_recall": (round(recall, 5), unit)}, command)


if __name__ == "__main__":
    main()
