"""Is int8 near enough? What it does to the recommendations of a run that knows nothing of it.

Every item of a finished run is encoded again, in int8 and in float32, and these vectors take the
place of the run's own in all that is made of LLM vectors, under the run's projection, sequence
models and weights. Nothing is trained on int8 vectors, so that nothing can make up for them. The
figure is how much NDCG@10 of the test split changes from float32 to int8; int8 is admitted below
one percent.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.figures import record
from models.bundle_writing import TrainedView
from models.encoder import RuntimeDType
from models.int8 import why_not_int8
from training.config import read_config
from training.content import content_view
from training.metrics import hit_rate, ndcg
from training.prepare import read_prepared
from training.ranking import Ranker
from training.rat import Trained, read_trained
from training.recipe import Run
from training.run_llm import RunLLM

K = 10
ADMITTED = 0.01
DTYPES: tuple[RuntimeDType, ...] = ("float32", "int8")
Vectors = NDArray[np.float32]


def main() -> None:
    """Encode, rank, print a table and record the change."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("training/configs/ml-100k.toml"))
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--name", default="", help="ending of the figures' ids")
    parser.add_argument("--dry-run", action="store_true", help="write no figure")
    given = parser.parse_args()
    if reason := why_not_int8():
        print(f"not measured: {reason}")
        return
    run = Run(read_config(given.config, given.set, given.source))
    catalogue, split = read_prepared(run)
    trained = read_trained(run)
    prompts = [run.config.template.render(item) for item in catalogue]
    vectors = {dtype: RunLLM.of(run).load(dtype).encode(prompts).vectors for dtype in DTYPES}
    gains, found = {}, {}
    for dtype in DTYPES:
        ranks = ranker(run, trained, vectors[dtype]).ranks(split.test_histories, split.test)
        gains[dtype] = ndcg(ranks, K)
        found[dtype] = {
            "ndcg10": float(gains[dtype].mean()),
            "hr10": float(hit_rate(ranks, K).mean()),
        }
    change = found["int8"]["ndcg10"] / found["float32"]["ndcg10"] - 1
    least = cosines(vectors["int8"], vectors["float32"])
    others = cosines(vectors["float32"], np.roll(vectors["float32"], 1, axis=0))
    told = {
        **found,
        "change": change,
        "users whose NDCG changed": int((gains["int8"] != gains["float32"]).sum()),
        "cosine of an item's two vectors": summary(least),
        "cosine of two items' vectors": summary(others),
        "admitted": abs(change) < ADMITTED,
    }
    print(json.dumps(told, indent=1))
    if given.dry_run:
        return
    ending = f".{given.name}" if given.name else ""
    command = "python -m benchmarks.int8"
    command += f" --config {given.config}" if given.config != parser.get_default("config") else ""
    command += " --source DIR" if given.source else ""
    command += "".join(f" --set {each}" for each in given.set)
    command += f" --name {given.name}" if given.name else ""
    unit = f"relative, of {found['float32']['ndcg10']:.5f}; {len(split.test)} users"
    values = {
        f"encode.int8_ndcg_change{ending}": (round(abs(change), 5), f"{unit}, either way"),
        f"encode.int8_min_cosine{ending}": (
            round(float(least.min()), 5),
            f"least of {len(catalogue)} items' int8 and float32 vectors",
        ),
    }
    record(values, command)


def ranker(run: Run, trained: Trained, vectors: Vectors) -> Ranker:
    """What the run ranks with, over other LLM vectors (n, d_llm) of the same items.

    The views' statistics stay those of the run, as a bundle's do.
    """

    def made_anew(view: TrainedView) -> TrainedView:
        if view.source == "content":
            return content_view(trained.projection, vectors, view.trained, run.config.rat.content)
        if view.source == "projection":
            with torch.inference_mode():
                items = trained.projection(torch.from_numpy(vectors)).numpy()
            return dataclasses.replace(view, items=items)
        return view

    ours = trained.ours
    return Ranker([made_anew(view) for view in ours.views], ours.scorer, ours.neighbours)


def cosines(left: Vectors, right: Vectors) -> Vectors:
    """Cosine of each row with the other's: (n,)."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: Vectors = (left * right).sum(axis=1) / lengths
    return found


def summary(values: Vectors) -> dict[str, float]:
    """Least and mean."""
    return {"least": round(float(values.min()), 5), "mean": round(float(values.mean()), 5)}


if __name__ == "__main__":
    main()
