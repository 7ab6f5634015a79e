"""Whether an item has one vector, however it is asked for: alone, among 64, beside 15 others, or
in the bundle as it was exported.

Vectors of one LLM all point the same way, so that two items' may have a cosine of .99; less the
catalogue's mean they do not, and the cosine of that is told too.
"""

import argparse
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.serving.films import Attributes, Films, batches
from benchmarks.serving.servers import Server, ours
from benchmarks.serving.throughput import CLIENTS, Figures

Floats = NDArray[np.float32]
BATCH = 64
VIEW = "llm"


def parity(given: argparse.Namespace) -> Figures:
    """The least cosine between any two ways to have the same item's vector."""
    films = Films(given.bundle)
    # The file of the items is in the order of the exported vectors.
    chosen = np.random.default_rng(0).permutation(len(films.known))[: given.items]
    items = [films.known[row] for row in chosen]
    exported = expected(given.bundle)
    mean = exported.mean(axis=0)
    # Nothing may come from an earlier answer.
    with ours(given.bundle, cache_items=0) as us:
        dtype = us.ask("/info")["dtype"]
        ways = {
            "exported": exported[chosen],
            "alone": vectors(us, [[each] for each in items], 1),
            f"among {BATCH}": vectors(us, batched(items), 1),
            f"beside {CLIENTS - 1}": vectors(us, [[each] for each in items], CLIENTS),
        }
    print("| ways | least cosine | less the mean |\n|---|--:|--:|")
    least = least_centred = 1.0
    for one, other in itertools.combinations(ways, 2):
        plain = float(cosines(ways[one], ways[other]).min())
        centred = float(cosines(ways[one] - mean, ways[other] - mean).min())
        print(f"| {one}, {other} | {plain:.6f} | {centred:.6f} |", flush=True)
        least, least_centred = min(least, plain), min(least_centred, centred)
    unit = f"least cosine of {len(items)} items' LLM vectors in {dtype}, all ways compared; "
    unit += f"{least_centred:.5f} less the mean"
    return {"serve.parity_min_cosine": (round(least, 6), unit)}


def batched(items: Sequence[Attributes]) -> list[Sequence[Attributes]]:
    """Batches of 64, the last one of what is left."""
    whole = batches(items, BATCH)
    rest = items[len(whole) * BATCH :]
    return [*whole, rest] if rest else whole


def vectors(server: Server, asked: Sequence[Sequence[Attributes]], clients: int) -> Floats:
    """LLM vectors (n, d_llm) of items, in the order of the requests."""

    def ask(films: Sequence[Attributes]) -> list[list[float]]:
        items = [{"item_id": f"p{n}", "attributes": film} for n, film in enumerate(films)]
        answer = server.ask("/embed", {"items": items, "view": VIEW})
        return [each["vectors"][VIEW] for each in answer["results"]]

    with ThreadPoolExecutor(clients) as pool:
        return np.array([each for some in pool.map(ask, asked) for each in some], np.float32)


def expected(bundle: Path) -> Floats:
    """The exported LLM vectors (n, d_llm), in the order of the file of items."""
    found: Floats = load_file(bundle / "llm_vectors.safetensors")["llm"]
    return found


def cosines(left: Floats, right: Floats) -> Floats:
    """Of each row of two tables, the cosine."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: Floats = np.einsum("ij,ij->i", left.astype(np.float64), right) / lengths
    return found
