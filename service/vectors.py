"""The vectors of one view, each at its place, and the search among them.

Few vectors are compared one and all. From CLUSTER_FROM on they lie in clusters of like direction
(FAISS' inverted lists over spherical k-means), and a search looks into those nearest to the
query: how many it takes for RECALL is measured when the clusters are made. Clusters are of
directions, so that long vectors do not crowd out the others. Nothing here changes once it is made,
so threads may share it. Shapes: n places, W = the view's width.
"""

from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Places = NDArray[np.int64]

CLUSTER_FROM = 100_000  # places; up to here all are compared in a few milliseconds
# Of the items asked for, how many a search finds, on the average over sampled queries: where an
# answer's items are asked for, and where candidates are, of which those at the end matter little.
RECALL = {25: 0.985, 1000: 0.93}
SAMPLED = 100  # queries that measure it
PER_CLUSTER = 40  # vectors that a cluster is learnt from
ROUNDS = 8  # of k-means
GROWN = 2  # times as many places as clusters were learnt from: learn them anew
# So few of the places that may be answered are compared without a look at the others.
COMPARE_ONLY = 4096
# Equals of the last one that are looked at for the lowest ids. A query that ties all there is, as
# zeros do, would have all of it sorted.
MOST_TIED = 4096
# So few places that may not be answered are left out of what was found: asking of every vector
# whether it may costs more than some more that are found.
FEW_OUT = 100
SPARE = 0.1  # of the range of a quantised number, on either side
# FAISS' DirectMap::Array and InvertedLists::SUBSET_TYPE_ID_RANGE, which its stubs do not know.
BY_PLACE, BETWEEN = 1, 0


class Vectors(Protocol):
    """The vectors (n, W) of one view.

    Attributes:
        quantised: whether they are kept in a byte a number where they are clustered.
        ranges: of quantised ones, what a byte stands for; None elsewhere.
        complete: whether every place has one.
    """

    width: int
    quantised: bool
    ranges: Floats | None
    complete: bool

    def __len__(self) -> int:
        """How many places, n."""

    def at(self, places: Places) -> Floats:
        """Those (m, W) at some places; zeros where there is none."""

    def search(
        self, query: Floats, k: int, may: Mask, count: int | None = None
    ) -> tuple[Places, Floats]:
        """The k places with the largest inner products and all that tie with the last, and these.

        In no order. Of equals beyond MOST_TIED it is anybody's guess which are found.

        Args:
            query: (W,) finite.
            may: (n,) which places may be answered; all of them have a vector.
            count: how many those are, where that is known.
        """

    def joined(self, more: Floats, present: Mask) -> "Vectors":
        """These and, at the places after them, others (m, W).

        Args:
            present: (m,) which of the others are vectors at all.
        """

    def write(self, path: Path) -> None:
        """Write a file that read_vectors reads."""


def vectors_of(
    table: Floats, present: Mask, *, quantised: bool = False, ranges: Floats | None = None
) -> Vectors:
    """The vectors of a table (n, W), which is copied.

    Args:
        present: (n,) which rows are vectors at all; the others are zeros.
        quantised: keep clustered vectors in a byte a number, and so nearly as they are.
        ranges: of the vectors that these were, if they were quantised: what is read from bytes
            and written to bytes of the same ranges stays as it is.
    """
    if len(table) < CLUSTER_FROM:
        return Exact.of(table, present, quantised)
    return Clustered.of(table, present, quantised, ranges)


def read_vectors(path: Path, present: Mask, *, quantised: bool) -> Vectors:
    """What Vectors.write wrote.

    Raises:
        ValueError: the file is of other vectors, or of the other kind.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if index.ntotal != len(present):
        raise ValueError(f"{path.name} has {index.ntotal} vectors of {len(present)}")
    if isinstance(index, faiss.IndexFlatIP):
        return Exact(index, present, quantised)
    wanted = faiss.IndexIVFScalarQuantizer if quantised else faiss.IndexIVFFlat
    if not isinstance(index, wanted):
        raise ValueError(f"{path.name} has vectors in another precision")
    sizes = np.loadtxt(_beside(path), dtype=np.int64, ndmin=1)
    learnt, *probes = sizes.tolist()
    return Clustered(index, present, learnt, dict(zip(RECALL, probes, strict=True)))


class Exact:
    """All vectors are compared; made by vectors_of.

    Attributes:
        table: (n, W).
    """

    def __init__(self, index: faiss.IndexFlatIP, present: Mask, quantised: bool) -> None:
        self._index = index
        self._present = present
        self.width: int = index.d
        self.quantised = quantised
        self.ranges: Floats | None = None
        self.complete = bool(present.all())
        self.table: Floats = np.empty((0, index.d), np.float32)
        if index.ntotal:
            shared = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
            self.table = shared.reshape(-1, index.d)

    @classmethod
    def of(cls, table: Floats, present: Mask, quantised: bool) -> "Exact":
        """A table (n, W)."""
        index = faiss.IndexFlatIP(table.shape[1])
        index.add(np.ascontiguousarray(table))
        return cls(index, present, quantised)

    def __len__(self) -> int:
        return len(self.table)

    def at(self, places: Places) -> Floats:
        """As Vectors.at."""
        found: Floats = self.table[places]
        return found

    def search(
        self, query: Floats, k: int, may: Mask, count: int | None = None
    ) -> tuple[Places, Floats]:
        """As Vectors.search."""
        count = int(np.count_nonzero(may)) if count is None else count
        # A selector costs more than it saves where everybody may.
        selector = None if count == len(may) else _selector(may)
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        return _widening(self._index, query, k, count, parameters)

    def joined(self, more: Floats, present: Mask) -> Vectors:
        """As Vectors.joined."""
        table = np.concatenate([self.table, more])
        together = np.concatenate([self._present, present])
        return vectors_of(table, together, quantised=self.quantised)

    def write(self, path: Path) -> None:
        """As Vectors.write."""
        faiss.write_index(self._index, str(path))


class Clustered:
    """The vectors of the clusters nearest to a query are compared; made by vectors_of.

    Args:
        index: that finds vectors by place, too.
        present: (n,) which places have one.
        learnt: of how many places the clusters were learnt.
        probes: for how many items, how many clusters to look into.
    """

    def __init__(
        self, index: faiss.IndexIVF, present: Mask, learnt: int, probes: dict[int, int]
    ) -> None:
        self._index = index
        self._present = present
        self._learnt = learnt
        self.probes = probes
        self.width: int = index.d
        self.quantised = isinstance(index, faiss.IndexIVFScalarQuantizer)
        self.ranges: Floats | None = None
        if isinstance(index, faiss.IndexIVFScalarQuantizer):
            self.ranges = faiss.vector_to_array(index.sq.trained)
        self.complete = bool(present.all())

    @classmethod
    def of(
        cls, table: Floats, present: Mask, quantised: bool, ranges: Floats | None
    ) -> "Clustered":
        """A table (n, W), and clusters learnt from it: a minute for a million of vectors."""
        width, some = table.shape[1], np.flatnonzero(present)
        count = 1
        if len(some):
            count = min(1 << round(float(np.log2(4 * np.sqrt(len(some))))), len(some))
        index = _empty(faiss.IndexFlatIP(width), count, quantised)
        index.cp.niter = ROUNDS
        index.cp.max_points_per_centroid = PER_CLUSTER
        index.cp.min_points_per_centroid = 1
        chance = np.random.default_rng(0)
        few = chance.permutation(some)[: PER_CLUSTER * count]
        # A view that nobody has is one cluster of nothing.
        index.train(table[few] if len(few) else np.ones((1, width), np.float32))
        if isinstance(index, faiss.IndexIVFScalarQuantizer):
            if ranges is None:
                lows, widths = faiss.vector_to_array(index.sq.trained).reshape(2, -1)
                # Vectors to come may lie somewhat beyond those of today.
                ranges = np.concatenate([lows - SPARE * widths, (1 + 2 * SPARE) * widths])
            faiss.copy_array_to_vector(ranges, index.sq.trained)
        index = _joined(index, table, present)
        probes = _measured(index, table, some, chance)
        return cls(index, present, len(table), probes)

    def __len__(self) -> int:
        return len(self._present)

    def at(self, places: Places) -> Floats:
        """As Vectors.at."""
        found = np.zeros((len(places), self._index.d), np.float32)
        there = self._present[places]
        if there.any():
            found[there] = self._index.reconstruct_batch(places[there])
        return found

    def search(
        self, query: Floats, k: int, may: Mask, count: int | None = None
    ) -> tuple[Places, Floats]:
        """As Vectors.search, but that it may miss some of the k; RECALL tells how many."""
        count = int(np.count_nonzero(may)) if count is None else count
        if count <= COMPARE_ONLY:
            places = np.flatnonzero(may)
            return places, self.at(places) @ query
        probes = next((self.probes[most] for most in self.probes if k <= most), None)
        probes = probes or max(self.probes.values()) * -(-k // max(self.probes))
        # Where few may be answered, the clusters hold fewer of them.
        probes = min(self._index.nlist, -(-probes * len(may) // count))
        places, scores = self._probed(query, k, may, count, probes)
        if len(places) < min(k, count):
            places, scores = self._probed(query, k, may, count, self._index.nlist)
        return places, scores

    def _probed(
        self, query: Floats, k: int, may: Mask, count: int, probes: int
    ) -> tuple[Places, Floats]:
        """What a look into some clusters finds, of the `count` that may be answered."""
        out = len(may) - count
        if out > FEW_OUT:
            parameters = faiss.SearchParametersIVF(sel=_selector(may), nprobe=probes)  # type: ignore[call-arg]
            return _widening(self._index, query, k, count, parameters)
        parameters = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
        places, scores = _widening(self._index, query, k + out, len(may), parameters)
        kept = may[places]
        return places[kept], scores[kept]

    def joined(self, more: Floats, present: Mask) -> Vectors:
        """As Vectors.joined; the clusters stay while there are not GROWN times as many."""
        together = np.concatenate([self._present, present])
        if len(together) > GROWN * self._learnt:
            table = np.concatenate([self.at(np.arange(len(self))), more])
            return vectors_of(table, together, quantised=self.quantised, ranges=self.ranges)
        index = _joined(self._index, more, present)
        return Clustered(index, together, self._learnt, self.probes)

    def write(self, path: Path) -> None:
        """As Vectors.write."""
        faiss.write_index(self._index, str(path))
        np.savetxt(_beside(path), [self._learnt, *self.probes.values()], "%d")


def _beside(path: Path) -> Path:
    return path.with_suffix(".probes")


def _empty(quantiser: faiss.Index, count: int, quantised: bool) -> faiss.IndexIVF:
    """So many clusters without a vector; ready where the quantiser has their middles."""
    width = quantiser.d
    if not quantised:
        return faiss.IndexIVFFlat(quantiser, width, count, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexIVFScalarQuantizer(
        *(quantiser, width, count, faiss.ScalarQuantizer.QT_8bit),
        faiss.METRIC_INNER_PRODUCT,
        False,  # the vectors themselves, and not how they differ from their clusters
    )


def _joined(index: faiss.IndexIVF, table: Floats, present: Mask) -> faiss.IndexIVF:
    """The vectors of an index and, at the places after them, the rows of a table.

    Rows that are no vectors lie in no cluster. Every cluster has just the room that it needs: one
    that grows reserves as much again as it holds, and all of it would be copied once more.
    """
    table, clusters = np.ascontiguousarray(table), np.full(len(table), -1, np.int64)
    if present.any():
        vectors = table if present.all() else table[present]
        clusters[present] = index.quantizer.search(vectors, 1)[1][:, 0]
    quantised = isinstance(index, faiss.IndexIVFScalarQuantizer)
    joined: Any = _empty(faiss.clone_index(index.quantizer), index.nlist, quantised)
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        faiss.copy_array_to_vector(faiss.vector_to_array(index.sq.trained), joined.sq.trained)
    joined.is_trained = True
    held: Any = index.invlists
    counts = np.bincount(clusters[clusters >= 0], minlength=index.nlist)
    for cluster, count in enumerate(counts.tolist()):
        joined.invlists.resize(cluster, held.list_size(cluster) + count)
        joined.invlists.resize(cluster, 0)
    index.copy_subset_to(joined, BETWEEN, 0, index.ntotal)
    joined.ntotal = index.ntotal  # of which some have no vector
    joined.add_core(len(table), faiss.swig_ptr(table), None, faiss.swig_ptr(clusters))
    joined.set_direct_map_type(BY_PLACE)
    done: faiss.IndexIVF = joined
    return done


def _measured(
    index: faiss.IndexIVF, table: Floats, some: Places, chance: np.random.Generator
) -> dict[int, int]:
    """For each number of items in RECALL, how many clusters it takes.

    Where nobody has a vector, one is all there are. The queries are what states of histories are
    like: between a few items, and beside them.
    """
    if not len(some):
        return dict.fromkeys(RECALL, 1)
    few = chance.choice(some, (SAMPLED, 3))
    queries = table[few].mean(axis=1)
    noise = 0.3 * queries.std() * chance.standard_normal(queries.shape)
    queries = (queries + noise).astype(np.float32)
    probes = {}
    for k, wanted in RECALL.items():
        k_there = min(k, len(some))
        index.nprobe = index.nlist
        least = index.search(queries, k_there)[0][:, -1:]  # of all that there are

        def enough(
            count: int, k: int = k_there, least: Floats = least, share: float = wanted
        ) -> bool:
            index.nprobe = count
            return bool((index.search(queries, k)[0] >= least).mean() >= share)

        less, count = 0, 1
        while count < index.nlist and not enough(count):
            less, count = count, min(2 * count, index.nlist)
        while count - less > 1:
            between = (less + count) // 2
            less, count = (less, between) if enough(between) else (between, count)
        probes[k] = count
    return probes


def _selector(may: Mask) -> faiss.IDSelector:
    # The stubs know the C++ signatures only.
    bits = np.packbits(may, bitorder="little")
    return faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]


def _widening(
    index: faiss.Index, query: Floats, k: int, count: int, parameters: faiss.SearchParameters
) -> tuple[Places, Floats]:
    """The k best of `count`, and more while they tie with the last."""
    fetch = min(k + 1, count)
    while fetch:
        scores, places = index.search(query[None], fetch, params=parameters)
        there = places[0] >= 0
        places, scores = places[0][there], scores[0][there]
        done = len(places) <= k or len(places) < fetch or scores[k - 1] != scores[-1]
        if done or fetch == min(count, k + MOST_TIED):
            return places, scores
        fetch = min(4 * fetch, count, k + MOST_TIED)  # the tie goes on beyond what was fetched
    return np.empty(0, np.int64), np.empty(0, np.float32)
