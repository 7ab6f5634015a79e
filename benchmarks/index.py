"""The index by itself, beside hnswlib and usearch: `python -m benchmarks.index`.

All search the same vectors with one thread: groups of like items whose lengths differ, and beside
them vectors without any order. A query is what the state of a history is like, something between a
few items. Peers are asked with so much effort that they find as many of the best as ours.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import usearch.index
from threadpoolctl import threadpool_limits

from benchmarks.figures import machine, record
from service.index import Snapshot
from service.vectors import Clustered, Floats, Places

K = 25
CANDIDATES = 1000  # of a view of a recommendation
VIEWS = 3
EFFORTS = (25, 35, 50, 70, 100, 140, 200, 280, 400, 560, 800, 1200)
LINKS, BUILDING = 16, 100  # of the peers' graphs: M and efConstruction
FILTERS = ("1 % at random", "1 % that are alike", "0.01 % at random", "0.01 % that are alike")
NOBODY = np.empty(0, np.int64)
Answer = Callable[[Floats], Sequence[int]]


def grouped(count: int, width: int, groups: int = 2000) -> Floats:
    """Vectors (count, width) in groups of uneven size, with uneven lengths."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((groups, width), np.float32)
    shares = 1 / np.arange(1, groups + 1) ** 0.7
    which = random.choice(groups, count, p=shares / shares.sum())
    vectors: Floats = centres[which]
    vectors += 0.7 * random.standard_normal((count, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= random.lognormal(0, 0.35, (count, 1)).astype(np.float32)
    return vectors


def between(vectors: Floats, count: int) -> Floats:
    """Queries (count, W): the middle of three of them, and some noise."""
    random = np.random.default_rng(1)
    queries = vectors[random.integers(len(vectors), size=(count, 3))].mean(axis=1)
    noise = 0.3 * queries.std() * random.standard_normal(queries.shape)
    return (queries + noise).astype(np.float32)


def truth(vectors: Floats, queries: Floats, may: Places | None = None) -> list[set[int]]:
    """Of each query the K best, among some."""
    found = []
    for query in queries:
        scores = vectors @ query if may is None else vectors[may] @ query
        best = np.argpartition(-scores, min(K, len(scores) - 1))[:K]
        found.append(set((best if may is None else may[best]).tolist()))
    return found


def asked(answer: Answer, queries: Floats, best: Sequence[set[int]]) -> tuple[float, float, float]:
    """p50 and p99 in milliseconds, and the share of the best that was found."""
    took, share = [], []
    for query, wanted in zip(queries, best, strict=True):
        started = time.perf_counter()
        found = answer(query)
        took.append(1000 * (time.perf_counter() - started))
        share.append(len(wanted & set(found)) / len(wanted))
    return float(np.median(took)), float(np.percentile(took, 99)), float(np.mean(share))


def told(name: str, figures: tuple[float, float, float]) -> None:
    """Print one row."""
    p50, p99, recall = figures
    print(f"{name:<48} p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  recall@{K} {recall:.4f}", flush=True)


def ours(snapshot: Snapshot, may: Places | None = None, k: int = K) -> Answer:
    """A search as the service does it."""
    mask = np.ones(len(snapshot), bool)
    if may is not None:
        mask[:] = False
        mask[may] = True

    def answer(query: Floats) -> list[int]:
        allowed = snapshot.allowed(NOBODY) & mask if may is not None else snapshot.allowed(NOBODY)
        places: list[int] = snapshot.search("text", query[None], [k], [allowed])[0][0].tolist()
        return places

    return answer


def several(snapshot: Snapshot) -> Answer:
    """The searches of one recommendation: candidates in each of a few views."""

    def answer(query: Floats) -> list[int]:
        allowed = snapshot.allowed(NOBODY)
        for _ in range(VIEWS):
            places = snapshot.search("text", query[None], [CANDIDATES], [allowed])[0][0]
        best: list[int] = places[:K].tolist()
        return best

    return answer


class Hnswlib:
    """hnswlib's graph of vectors (n, W)."""

    def __init__(self, vectors: Floats, path: Path | None) -> None:
        self._graph = hnswlib.Index("ip", vectors.shape[1])
        if path and path.exists():
            self._graph.load_index(str(path), len(vectors))
        else:
            self._graph.init_index(len(vectors), BUILDING, LINKS)
            self._graph.add_items(vectors)
            if path:
                self._graph.save_index(str(path))
        self._graph.set_num_threads(1)

    def answer(self, effort: int, may: Places | None = None) -> Answer:
        """A search that looks at so many, and finds only some."""
        self._graph.set_ef(effort)
        if may is None:
            return lambda query: self._graph.knn_query(query, K)[0][0].tolist()
        some = set(may.tolist())
        k = min(K, len(some))  # more than it finds is an error

        def answer(query: Floats) -> list[int]:
            try:
                found = self._graph.knn_query(query, k, filter=some.__contains__)
            except RuntimeError:  # it came by fewer
                return []
            best: list[int] = found[0][0].tolist()
            return best

        return answer

    def delete(self, gone: Places) -> None:
        """Never answer them again."""
        for label in gone.tolist():
            self._graph.mark_deleted(label)


class Usearch:
    """usearch's graph of vectors (n, W)."""

    def __init__(self, vectors: Floats, path: Path | None) -> None:
        self._graph = usearch.index.Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=LINKS,
            expansion_add=BUILDING,
        )
        if path and path.exists():
            self._graph.load(str(path))
        else:
            self._graph.add(np.arange(len(vectors)), vectors)
            if path:
                self._graph.save(str(path))

    def answer(self, effort: int) -> Answer:
        """A search that looks at so many."""
        self._graph.expansion_search = effort
        return lambda query: self._graph.search(query, K, threads=1).keys.tolist()

    def delete(self, gone: Places) -> None:
        """Never answer them again."""
        self._graph.remove(gone)


def deleted(count: int) -> tuple[Places, Places]:
    """Places that a fifth of so many items had, and those that are left."""
    gone = np.random.default_rng(2).choice(count, count // 5, replace=False)
    return gone, np.setdiff1d(np.arange(count), gone)


def peers(vectors: Floats, queries: Floats, recall: float, keep: Path | None) -> None:
    """Peers at the recall of ours, or as near as they come: whole, filtered, a fifth deleted."""
    best = truth(vectors, queries)
    gone, left = deleted(len(vectors))
    best_left = truth(vectors, queries, left)
    for name, peer in (("hnswlib", Hnswlib), ("usearch", Usearch)):
        started = time.perf_counter()
        graph = peer(vectors, keep / f"{name}.bin" if keep else None)
        print(f"{name}: built or read in {time.perf_counter() - started:.0f} s", flush=True)
        reaching(name, graph.answer, queries, best, recall)
        if isinstance(graph, Hnswlib):  # usearch's Python knows no filter
            few = queries[:100]
            for may, told_of in zip(filters(vectors), FILTERS, strict=True):
                filtered = partial(graph.answer, may=may)
                wanted = truth(vectors, few, may)
                reaching(f"{name}, a filter that {told_of} pass", filtered, few, wanted, recall)
        graph.delete(gone)
        reaching(f"{name}, a fifth deleted", graph.answer, queries, best_left, recall)


def reaching(
    name: str,
    answer: Callable[[int], Answer],
    queries: Floats,
    best: Sequence[set[int]],
    recall: float,
) -> None:
    """Print a peer with the least effort that finds as much, or with the most."""
    for effort in EFFORTS:
        figures = asked(answer(effort), queries, best)
        if figures[2] >= recall or effort == EFFORTS[-1]:
            told(f"{name}, effort {effort}", figures)
            return


def own(vectors: Floats, queries: Floats) -> tuple[dict[str, tuple[float, str]], float]:
    """Figures of ours, and its recall; int8 is printed beside it."""
    best, count = truth(vectors, queries), len(vectors)
    figures: dict[str, tuple[float, str]] = {}
    for quantised in (True, False):
        started = time.perf_counter()
        snapshot = whole(vectors, quantised)
        took = time.perf_counter() - started
        held = snapshot.main.vectors["text"]
        probes = held.probes if isinstance(held, Clustered) else "all"
        kind = "int8" if quantised else "float32"
        print(f"== ours, {kind}: built in {took:.0f} s, clusters looked into: {probes}")
        with one_thread():
            alone = asked(ours(snapshot), queries, best)
            told("one query", alone)
            left = deleted(count)[1]
            told(
                "a fifth deleted",
                asked(ours(snapshot, left), queries, truth(vectors, queries, left)),
            )
            together = asked(several(snapshot), queries[:200], best[:200])
            told(f"{VIEWS} views, {CANDIDATES} candidates of each", together)
            filtered = [
                asked(ours(snapshot, may), queries, truth(vectors, queries, may))
                for may in filters(vectors)
            ]
            for row, name in zip(filtered, FILTERS, strict=True):
                told(f"a filter that {name} pass", row)
        figures = {
            "index.p50_ms": (round(alone[0], 2), f"ms, {count:,} x {vectors.shape[1]}, k = {K}"),
            "index.p99_ms": (round(alone[1], 2), "ms"),
            "index.recall": (round(alone[2], 4), f"of the exact {K} best"),
            "index.recommendation_p50_ms": (
                round(together[0], 2),
                f"ms, {VIEWS} views, {CANDIDATES} candidates of each",
            ),
            "index.filtered_p99_ms": (
                round(max(row[1] for row in filtered), 2),
                "ms, the slowest of four filters",
            ),
            "index.filtered_recall": (
                round(min(row[2] for row in filtered), 4),
                f"of the exact {K} best, the least of four filters",
            ),
        }
        del snapshot, held
    return figures, alone[2]


def filters(vectors: Floats) -> list[Places]:
    """Who passes each of FILTERS."""
    order = np.argsort(-(vectors @ vectors[0]))
    some = np.random.default_rng(3).permutation(len(vectors))
    return [
        who[: max(1, len(vectors) // share)] for share in (100, 10_000) for who in (some, order)
    ]


def whole(vectors: Floats, quantised: bool = False) -> Snapshot:
    """A catalogue of vectors (n, W) in one view."""
    count = len(vectors)
    return Snapshot.of_tables(
        [f"item-{number}" for number in range(count)],
        {"text": vectors},
        {"text": np.ones(count, bool)},
        np.zeros(count, bool),
        np.arange(count),
        quantised=quantised,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Of BLAS and FAISS, within the block."""
    before = faiss.omp_get_max_threads()
    with threadpool_limits(1):
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", type=Path, help="folder where built peers are kept")
    parser.add_argument("--dry-run", action="store_true", help="print figures, write none")
    given = parser.parse_args()
    print(machine(), flush=True)
    vectors = grouped(given.items, given.width)
    queries = between(vectors, given.queries)
    figures, recall = own(vectors, queries)
    if given.peers:
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
        with one_thread():
            peers(vectors, queries, recall, given.keep)
    del vectors
    random = np.random.default_rng(5).standard_normal((given.items, given.width), np.float32)
    snapshot, asking = whole(random), between(random, 200)
    with one_thread():
        told("ours, vectors without order", asked(ours(snapshot), asking, truth(random, asking)))
    for name, (value, unit) in figures.items():
        print(f"{name} = {value} {unit}")
    if not given.dry_run:
        record(figures, f"python -m benchmarks.index --items {given.items}")


if __name__ == "__main__":
    main()
