"""What do item vectors know of what is bought together, of items that nobody was seen to buy?

A cheap look at vectors before anything is trained on them. A training item's place among the
others is its row in the singular vectors of the neighbours' graph (128 numbers, unit length). A
tenth of the items is held out; from the vectors of the rest a linear map and a network of one
hidden layer learn their places. The figure is where a held-out item's own place comes among those
of all training items, sorted by the cosine to what was predicted: the median of that rank as a
share (0 is best, .5 is chance), over three draws of the tenth. The training split alone is read.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figures import record
from models.projection import Projection
from training.compare import read_comparison, variant_run
from training.encode import encode, read_llm_vectors
from training.places import DIM, collaborative_places
from training.prepare import prepare, read_prepared
from training.scft import scft

DEFAULT = Path("training/configs/compare/amazon-beauty.toml")
HIDDEN = 1024
EPOCHS = 20
BATCH = 256
TEMPERATURE = 0.1
DRAWS = 3


def main() -> None:
    """Measure the vectors of each variant and record the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparison", type=Path, default=DEFAULT)
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--only", action="append", default=[], help="a variant; may be repeated")
    parser.add_argument("--name", default="beauty", help="prefix of the figures' ids")
    given = parser.parse_args()
    command = f"python -m benchmarks.readout --comparison {given.comparison}"
    command += "".join(f" --only {name}" for name in given.only) + f" --name {given.name}"
    command += " --source DIR" if given.source else ""
    comparison = read_comparison(given.comparison)
    values: dict[str, tuple[float, str]] = {}
    for name in given.only or [comparison.reference]:
        run = variant_run(given.comparison, comparison, name, comparison.seeds[0], [], given.source)
        with run.lock():
            for step in (prepare, scft, encode):
                step(run)
            _, split = read_prepared(run)
            vectors = read_llm_vectors(run.finished("encode"))
        places = collaborative_places(split.train, len(split.counts) - 1, run.config.rat.neighbours)
        for model, hidden in (("linear", 0), ("network", HIDDEN)):
            ranks = [held_out_rank(vectors, places, hidden, draw) for draw in range(DRAWS)]
            values[f"{given.name}.readout.{name}.{model}"] = (
                round(float(np.mean(ranks)), 4),
                f"median rank as a share, mean of {DRAWS} draws",
            )
            print(name, model, [round(rank, 4) for rank in ranks], flush=True)
    record(values, command)


def held_out_rank(
    vectors: NDArray[np.float32], places: NDArray[np.float32], hidden: int, draw: int
) -> float:
    """The median rank, in [0, 1], of a held-out tenth's own places.

    Args:
        vectors: (n, d) of the items.
        places: (n, 128), zero rows of items that are left out.
        hidden: width of the hidden layer; 0 for a linear map.
        draw: seed of the tenth and of the weights.
    """
    torch.manual_seed(draw)
    usable = np.flatnonzero(places.any(axis=1))
    held = np.random.default_rng(draw).random(len(usable)) < 0.1
    learnt, asked = usable[~held], usable[held]
    scaling = Projection(vectors.shape[1], [vectors.shape[1]])
    scaling.fit(vectors[learnt])
    inputs = scaling.content(torch.from_numpy(vectors)) * vectors.shape[1] ** 0.5
    everybody = torch.from_numpy(places[usable])
    own = {item: row for row, item in enumerate(usable)}
    model = _network(inputs.shape[1], hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    orders = np.random.default_rng(draw)
    for _ in range(EPOCHS):
        for batch in np.array_split(orders.permutation(learnt), len(learnt) // BATCH + 1):
            logits = functional.normalize(model(inputs[batch]), dim=1) @ everybody.T / TEMPERATURE
            loss = functional.cross_entropy(logits, torch.tensor([own[item] for item in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        scores: Tensor = functional.normalize(model(inputs[asked]), dim=1) @ everybody.T
        mine = scores.gather(1, torch.tensor([[own[item]] for item in asked]))
        return float((scores > mine).float().mean(dim=1).median())


def _network(width: int, hidden: int) -> nn.Module:
    """Dropout, as the items are few and their vectors wide."""
    if not hidden:
        return nn.Linear(width, DIM)
    return nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(hidden, DIM),
    )


if __name__ == "__main__":
    main()
