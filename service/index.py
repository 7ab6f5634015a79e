"""The catalogue in memory: exact inner-product search in every view, while items come and go.

FAISS crashes when it is changed while it is searched. So nothing here is ever changed: a
Snapshot is a large main block with its FAISS indexes, a mask of what is no longer in it, and a
small block of recent upserts that is searched by numpy. A change makes a new Snapshot that
shares all it can; readers keep theirs. Shapes: n items of a block, W = a view's width.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Places = NDArray[np.int64]
Views = Mapping[str, Floats]

# Up to this many items one matrix product for all queries of a round is faster than FAISS' scan.
COMPARE_ALL = 20_000
MERGE_AT = 1000  # recent items; searching that many by numpy costs less than one FAISS call


@dataclass(frozen=True)
class Block:
    """Items in a fixed order.

    Attributes:
        ids: of the items.
        rows: of each id, its place.
        tables: of each view, (n, W) float32; zeros where an item lacks the view.
        present: of each view, (n,) which items have it.
        hidden: (n,) which items are never answered.
    """

    ids: Sequence[str]
    rows: Mapping[str, int]
    tables: Mapping[str, Floats]
    present: Mapping[str, Mask]
    hidden: Mask

    @classmethod
    def of(
        cls, items: Mapping[str, Views], widths: Mapping[str, int], hidden: Container[str] = ()
    ) -> "Block":
        """The block of items, each with the views it has; some of them hidden."""
        tables = {view: np.zeros((len(items), width), np.float32) for view, width in widths.items()}
        present = {view: np.zeros(len(items), bool) for view in widths}
        for row, views in enumerate(items.values()):
            for view, vector in views.items():
                tables[view][row] = vector
                present[view][row] = True
        return cls(
            list(items),
            {each: row for row, each in enumerate(items)},
            tables,
            present,
            np.fromiter((each in hidden for each in items), bool, len(items)),
        )

    def views(self, row: int) -> dict[str, Floats]:
        """The vectors of one item."""
        return {view: self.tables[view][row] for view in self.tables if self.present[view][row]}


class Snapshot:
    """The catalogue at one moment; safe to read from any thread.

    Places: item i of the main block is place i, item j of the recent ones is place n + j.

    Args:
        main: the large block.
        indexes: of each view, FAISS over the main block's table.
        live: (n,) which items of the main block are still in the catalogue as they stand there.
        recent: items that came after; none is live in main.
    """

    def __init__(
        self, main: Block, indexes: Mapping[str, faiss.IndexFlatIP], live: Mask, recent: Block
    ) -> None:
        self.main = main
        self.recent = recent
        self._indexes = indexes
        self._live = live
        self._count = int(live.sum()) + len(recent.ids)
        self._shown = np.concatenate([live & ~main.hidden, ~recent.hidden])

    @classmethod
    def of(
        cls, items: Mapping[str, Views], widths: Mapping[str, int], hidden: Container[str] = ()
    ) -> "Snapshot":
        """The snapshot of exactly these items, some of them hidden."""
        return cls._over(Block.of(items, widths, hidden), widths)

    @classmethod
    def _over(cls, main: Block, widths: Mapping[str, int]) -> "Snapshot":
        indexes, tables = {}, {}
        for view, width in widths.items():
            index = faiss.IndexFlatIP(width)
            index.add(main.tables[view])
            indexes[view] = index
            # FAISS has copied the table; look at its copy and let ours go.
            stored = faiss.rev_swig_ptr(index.get_xb(), len(main.ids) * width)
            tables[view] = stored.reshape(-1, width) if len(main.ids) else main.tables[view]
        shared = Block(main.ids, main.rows, tables, main.present, main.hidden)
        return cls(shared, indexes, np.ones(len(main.ids), bool), Block.of({}, widths))

    def __len__(self) -> int:
        return self._count

    @property
    def shown(self) -> int:
        """How many items may be answered: all that are not hidden."""
        return int(self._shown.sum())

    def shown_with(self, view: str) -> int:
        """How many of them have a view."""
        has = np.concatenate([self.main.present[view], self.recent.present[view]])
        return int((self._shown & has).sum())

    def __contains__(self, item_id: str) -> bool:
        return self.place(item_id) is not None

    def place(self, item_id: str) -> int | None:
        """Where an item stands; None if it is not in the catalogue."""
        if (row := self.recent.rows.get(item_id)) is not None:
            return len(self.main.ids) + row
        row = self.main.rows.get(item_id)
        return row if row is not None and self._live[row] else None

    def item_id(self, place: int) -> str:
        """Who stands at a place."""
        start = len(self.main.ids)
        return self.main.ids[place] if place < start else self.recent.ids[place - start]

    def views(self, item_id: str) -> dict[str, Floats] | None:
        """The vectors of an item; None if it is not in the catalogue."""
        place = self.place(item_id)
        if place is None:
            return None
        start = len(self.main.ids)
        return self.main.views(place) if place < start else self.recent.views(place - start)

    def places(self, item_ids: Iterable[str]) -> Places:
        """Where items stand, in their order; -1 for those that are not in the catalogue."""
        found = (self.place(item_id) for item_id in item_ids)
        return np.array([-1 if place is None else place for place in found], np.int64)

    def stands(self, places: Places) -> Mask:
        """At which places an item of the catalogue stands; -1 is none."""
        start = len(self.main.ids)
        found = places >= start
        old = (places >= 0) & ~found
        found[old] = self._live[places[old]]
        return found

    def vectors(self, view: str, places: Places) -> Floats:
        """Vectors (n, W) of the items at some places; zeros where an item lacks the view."""
        start = len(self.main.ids)
        found = np.empty((len(places), self.main.tables[view].shape[1]), np.float32)
        old = places < start
        found[old] = self.main.tables[view][places[old]]
        found[~old] = self.recent.tables[view][places[~old] - start]
        return found

    def present(self, view: str, places: Places) -> Mask:
        """(n,) which of the items at some places have a view."""
        start = len(self.main.ids)
        old = places < start
        found = np.empty(len(places), bool)
        found[old] = self.main.present[view][places[old]]
        found[~old] = self.recent.present[view][places[~old] - start]
        return found

    def history(self, places: Places) -> dict[str, Floats]:
        """Of each view the vectors (L, W) of those of these items that have it, in their order."""
        return {
            view: self.vectors(view, places[self.present(view, places)])
            for view in self.main.tables
        }

    def allowed(self, exclude: Places) -> Mask:
        """(places,) who may be answered, but for those at some places; -1 is nobody's.

        Hidden items may not; they can still be looked up, and stand in histories.
        """
        mask = self._shown.copy()
        mask[exclude[exclude >= 0]] = False
        return mask

    def gather(self, places: Places) -> tuple[dict[str, Floats], dict[str, Mask]]:
        """Vectors and presence of the items at some places, as models.scorer takes them."""
        views = list(self.main.tables)
        return (
            {view: self.vectors(view, places) for view in views},
            {view: self.present(view, places) for view in views},
        )

    def search(
        self, view: str, queries: Floats, ks: Sequence[int], allowed: Sequence[Mask]
    ) -> list[tuple[Places, Floats]]:
        """Of each query the k best items in one view by inner product, exactly.

        Ties take the lower id (by code point), also where they straddle k.

        Args:
            queries: (B, W) float32, finite.
            ks: of each query, how many.
            allowed: of each query, as `allowed` gives it; places that may be answered.

        Returns:
            Of each query, places and their scores, best first: k, or as many as are allowed and
            have the view.
        """
        start = len(self.main.ids)
        if start <= COMPARE_ALL:
            old = queries @ self.main.tables[view].T  # (B, n)
        new = queries @ self.recent.tables[view].T
        found = []
        for row, (k, may) in enumerate(zip(ks, allowed, strict=True)):
            main = may[:start] & self.main.present[view]
            if start <= COMPARE_ALL:
                places = np.flatnonzero(main)
                scores = old[row, places]
            else:
                places, scores = self._search_main(view, queries[row], k, main)
            recent = np.flatnonzero(may[start:] & self.recent.present[view])
            places = np.concatenate([places, recent + start])
            scores = np.concatenate([scores, new[row, recent]])
            order = self.ranked(places, scores, k)
            found.append((places[order], scores[order]))
        return found

    def _search_main(self, view: str, query: Floats, k: int, may: Mask) -> tuple[Places, Floats]:
        """The k best of the main block by FAISS, and all that tie with the last of them."""
        count = int(may.sum())
        fetch = min(k + 1, count)
        while fetch:
            bits = np.packbits(may, bitorder="little")
            # Excludes inside the search, so k come back. The stubs know the C++ signatures only.
            selector = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
            scores, places = self._indexes[view].search(
                query[None],
                fetch,
                params=faiss.SearchParameters(sel=selector),  # type: ignore[call-arg]
            )
            there = places[0] >= 0
            places, scores = places[0][there], scores[0][there]
            if len(places) >= count or len(places) <= k or scores[k - 1] != scores[-1]:
                return places, scores
            fetch = min(4 * fetch, count)  # the tie goes on beyond what was fetched
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def ranked(self, places: Places, scores: Floats, k: int) -> list[int]:
        """Positions of the k best, best first; ties take the lower id."""
        chosen: NDArray[np.int64] = np.arange(len(scores))
        if len(scores) > k:
            least = np.partition(scores, len(scores) - k)[len(scores) - k]
            chosen = np.flatnonzero(scores >= least)
        return sorted(chosen.tolist(), key=lambda at: (-scores[at], self.item_id(int(places[at]))))[
            :k
        ]

    def with_changes(
        self,
        upserts: Mapping[str, Views],
        deletes: Iterable[str],
        widths: Mapping[str, int],
        hidden: Collection[str] = (),
    ) -> "Snapshot":
        """The next snapshot; this one stays as it is.

        Args:
            hidden: ids of those of `upserts` that are hidden.
        """
        live = self._live.copy()
        recent: dict[str, Views] = {
            each: self.recent.views(row) for row, each in enumerate(self.recent.ids)
        }
        gone = [*upserts, *deletes]
        hiding = {each for each, row in self.recent.rows.items() if self.recent.hidden[row]}
        hiding = hiding.difference(gone).union(hidden)
        for item_id in gone:
            recent.pop(item_id, None)
            if (row := self.main.rows.get(item_id)) is not None:
                live[row] = False
        recent.update(upserts)
        new = Block.of(recent, widths, hiding)
        if len(recent) > MERGE_AT:
            kept = np.flatnonzero(live)
            ids = [self.main.ids[row] for row in kept.tolist()] + list(new.ids)
            merged = Block(
                ids,
                {each: row for row, each in enumerate(ids)},
                {
                    view: np.concatenate([self.main.tables[view][kept], new.tables[view]])
                    for view in widths
                },
                {
                    view: np.concatenate([self.main.present[view][kept], new.present[view]])
                    for view in widths
                },
                np.concatenate([self.main.hidden[kept], new.hidden]),
            )
            return Snapshot._over(merged, widths)
        return Snapshot(self.main, self._indexes, live, new)
