"""The catalogue in memory: inner-product search in every view, while items come and go.

FAISS crashes when it is changed while it is searched, so nothing that is searched is ever changed.
Every item has a place, and a place never has another item: who is changed gets a new place behind
all others, and the old one is not alive any more. A Snapshot is the catalogue at one moment: a
large main block with an index over each view, the places behind it that are compared one by one,
and a mask of what is alive. A change makes a new Snapshot that shares all it can; readers keep
theirs. Shapes: n places, W = a view's width.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from functools import cached_property
from heapq import nsmallest
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from service.blocks import Main, Rebuilt, Recent, Room, Versions, Views
from service.columns import Columns, appended
from service.filters import Filter, HeldKind
from service.ids import Ids
from service.vectors import Exact, Floats, Mask, Places, vectors_of

__all__ = ["Floats", "Main", "Mask", "Places", "Rebuilt", "Snapshot", "Versions", "Views"]

# Up to this many items one matrix product for all queries of a round is faster than FAISS' scan.
COMPARE_ALL = 20_000
# Places behind the main block, from which on it is worth a new one: at least, and as a share of
# the main block, for a new one costs as much as that is large.
MERGE_AT = 1000
MERGE_SHARE = 0.01
CHOKED = 4  # times as many
# Places without an item, from which on it is worth to give every item a new place.
DEAD_SHARE = 0.25
FIRST_ROOM = 64  # behind the main block, before it grows


class Snapshot:
    """The catalogue at one moment; safe to read from any thread.

    Args:
        main: the first places.
        room: what is behind them, of which `count` places are this snapshot's.
        live: (n,) at which places, of all, an item of the catalogue stands.
        shown: (n,) at which of these one that may be answered.
        places: of each id whose latest place is behind the main block, the place.
        columns: of the places behind the main block, in pieces.
    """

    def __init__(
        self,
        main: Main,
        room: Room,
        count: int,
        live: Mask,
        shown: Mask,
        places: Mapping[str, int],
        columns: tuple[Columns, ...],
    ) -> None:
        self.main = main
        self._room = room
        self._count = count
        self._live = live
        self._may = shown
        self._may.flags.writeable = False
        self._places = places
        self._columns = columns
        self._items = int(np.count_nonzero(live))
        self.recent = Recent(
            room.ids[:count],
            {view: table[:count] for view, table in room.tables.items()},
            {view: present[:count] for view, present in room.present.items()},
            room.hidden[:count],
            room.versions[:count],
        )

    @classmethod
    def of(
        cls, items: Mapping[str, Views], widths: Mapping[str, int], hidden: Container[str] = ()
    ) -> "Snapshot":
        """The snapshot of exactly these items, some of them hidden; all of version 0."""
        tables = {view: np.zeros((len(items), width), np.float32) for view, width in widths.items()}
        present = {view: np.zeros(len(items), bool) for view in widths}
        for row, views in enumerate(items.values()):
            for view, vector in views.items():
                tables[view][row] = vector
                present[view][row] = True
        hiding = np.fromiter((each in hidden for each in items), bool, len(items))
        return cls.of_tables(items, tables, present, hiding, np.zeros(len(items), np.int64))

    @classmethod
    def of_tables(
        cls,
        ids: Iterable[str],
        tables: Mapping[str, Floats],
        present: Mapping[str, Mask],
        hidden: Mask,
        versions: Versions,
        *,
        columns: Columns | None = None,
        quantised: bool = False,
    ) -> "Snapshot":
        """The snapshot of items by their place; see Main, and vectors.vectors_of.

        Args:
            columns: without them, the items have no attributes.
        """
        vectors = {
            view: vectors_of(table, present[view], quantised=quantised)
            for view, table in tables.items()
        }
        ids = ids if isinstance(ids, Ids) else Ids.of(ids)
        columns = columns or Columns.of({} for _ in ids)
        main = Main(ids, vectors, present, hidden, versions, columns)
        return cls.over(main, np.ones(len(ids), bool))

    @classmethod
    def over(cls, main: Main, live: Mask) -> "Snapshot":
        """The snapshot of those items of a main block that are alive."""
        widths = {view: vectors.width for view, vectors in main.vectors.items()}
        return cls(main, Room(widths, FIRST_ROOM), 0, live, live & ~main.hidden, {}, ())

    def __len__(self) -> int:
        return self._items

    @property
    def shown(self) -> int:
        """How many items may be answered: all that are not hidden."""
        return int(np.count_nonzero(self._may))

    def shown_with(self, view: str) -> int:
        """How many of them have a view."""
        has = np.concatenate([self.main.present[view], self.recent.present[view]])
        return int((self._may & has).sum())

    def __contains__(self, item_id: str) -> bool:
        return self.place(item_id) is not None

    def place(self, item_id: str) -> int | None:
        """Where an item stands; None if it is not in the catalogue."""
        place = self._places.get(item_id)
        if place is None:
            place = self.main.place(item_id)
        return place if place >= 0 and self._live[place] else None

    def item_id(self, place: int) -> str:
        """Who stands at a place."""
        start = len(self.main)
        item_id: str = self.main.ids[place] if place < start else self.recent.ids[place - start]
        return item_id

    def views(self, item_id: str) -> dict[str, Floats] | None:
        """The vectors of an item; None if it is not in the catalogue."""
        place = self.place(item_id)
        if place is None:
            return None
        alone = np.array([place])
        return {
            view: self.vectors(view, alone)[0]
            for view in self.main.vectors
            if self.present(view, alone)[0]
        }

    def places(self, item_ids: Iterable[str]) -> Places:
        """Where items stand, in their order; -1 for those that are not in the catalogue."""
        ids = list(item_ids)
        found = self.main.ids.places(ids)
        for row, item_id in enumerate(ids if self._places else ()):
            found[row] = self._places.get(item_id, found[row])
        found[~self.stands(found)] = -1
        return found

    def stands(self, places: Places) -> Mask:
        """At which places an item of the catalogue stands; -1 is none."""
        found = places >= 0
        found[found] = self._live[places[found]]
        return found

    def vectors(self, view: str, places: Places) -> Floats:
        """Vectors (n, W) of the items at some places; zeros where an item lacks the view."""
        start = len(self.main)
        found = np.empty((len(places), self.recent.tables[view].shape[1]), np.float32)
        old = places < start
        found[old] = self.main.vectors[view].at(places[old])
        found[~old] = self.recent.tables[view][places[~old] - start]
        return found

    def present(self, view: str, places: Places) -> Mask:
        """(n,) which of the items at some places have a view."""
        start = len(self.main)
        old = places < start
        found = np.empty(len(places), bool)
        found[old] = self.main.present[view][places[old]]
        found[~old] = self.recent.present[view][places[~old] - start]
        return found

    def history(self, places: Places) -> dict[str, Floats]:
        """Of each view the vectors (L, W) of those of these items that have it, in their order."""
        return {
            view: self.vectors(view, places[self.present(view, places)])
            for view in self.main.vectors
        }

    def allowed(self, exclude: Places, matching: Filter | None = None) -> Mask:
        """(places,) who may be answered, but for those at some places; -1 is nobody's. Read-only.

        Hidden items may not; they can still be looked up, and stand in histories.

        Args:
            matching: only items that match it may.
        """
        if not len(exclude) and matching is None:
            return self._may  # to copy a million of them, and to count them, takes its time
        mask = self._may.copy()
        mask[exclude[exclude >= 0]] = False
        if matching is not None:
            start = 0
            for columns in (self.main.columns, *self._columns):
                mask[start : start + len(columns)] &= columns.mask(matching)
                start += len(columns)
        mask.flags.writeable = False
        return mask

    @cached_property
    def _may_in_main(self) -> int:
        """How many places of the main block may be answered."""
        return int(np.count_nonzero(self._may[: len(self.main)]))

    def kinds(self, name: str) -> frozenset[HeldKind]:
        """Of which kinds items have values of an attribute, or had lately."""
        found = self.main.columns.kinds(name)
        return found.union(*(columns.kinds(name) for columns in self._columns))

    def gather(self, places: Places) -> tuple[dict[str, Floats], dict[str, Mask]]:
        """Vectors and presence of the items at some places, as models.scorer takes them."""
        views = list(self.main.vectors)
        return (
            {view: self.vectors(view, places) for view in views},
            {view: self.present(view, places) for view in views},
        )

    def search(
        self, view: str, queries: Floats, ks: Sequence[int], allowed: Sequence[Mask]
    ) -> list[tuple[Places, Floats]]:
        """Of each query the k best items in one view by inner product.

        Exactly, but where the main block is clustered: see service.vectors. Ties take the lower
        id (by code point), also where they straddle k.

        Args:
            queries: (B, W) float32, finite.
            ks: of each query, how many.
            allowed: of each query, as `allowed` gives it; places that may be answered.

        Returns:
            Of each query, places and their scores, best first: k, or as many as are allowed and
            have the view.
        """
        start = len(self.main)
        vectors = self.main.vectors[view]
        if start <= COMPARE_ALL and isinstance(vectors, Exact):
            old = queries @ vectors.table.T  # (B, n)
        new = queries @ self.recent.tables[view].T
        found = []
        for row, (k, may) in enumerate(zip(ks, allowed, strict=True)):
            main = may[:start]
            if not vectors.complete:
                main = main & self.main.present[view]
            if start <= COMPARE_ALL and isinstance(vectors, Exact):
                places = np.flatnonzero(main)
                scores = old[row, places]
            else:
                whole = may is self._may and vectors.complete
                count = self._may_in_main if whole else None
                places, scores = vectors.search(queries[row], k, main, count)
            if self._count:
                recent = np.flatnonzero(may[start:] & self.recent.present[view])
                places = np.concatenate([places, recent + start])
                scores = np.concatenate([scores, new[row, recent]])
            order = self.ranked(places, scores, k)
            found.append((places[order], scores[order]))
        return found

    def ranked(self, places: Places, scores: Floats, k: int) -> list[int]:
        """Positions of the k best, best first; ties take the lower id."""
        chosen: NDArray[np.int64] = np.arange(len(scores))
        if len(scores) > k:
            least = np.partition(scores, len(scores) - k)[len(scores) - k]
            chosen = np.flatnonzero(scores >= least)
        best_first = chosen[np.argsort(-scores[chosen], kind="stable")]
        in_order = scores[best_first]
        if not (in_order[1:] == in_order[:-1]).any():
            first: list[int] = best_first[:k].tolist()
            return first
        # An id is much to read only to compare it.
        return nsmallest(
            k, chosen.tolist(), key=lambda at: (-scores[at], self.item_id(int(places[at])))
        )

    def with_changes(
        self,
        upserts: Mapping[str, Views],
        deletes: Iterable[str],
        hidden: Collection[str] = (),
        versions: Mapping[str, int] | None = None,
        columns: Columns | None = None,
    ) -> "Snapshot":
        """The next snapshot; this one stays as it is.

        Args:
            hidden: ids of those of `upserts` that are hidden.
            versions: of `upserts`; 0 where nothing is said.
            columns: of `upserts`, in their order; without them, they have no attributes.
        """
        versions = versions or {}
        room, count = self._room, self._count
        end = count + len(upserts)
        size = len(room.hidden)
        if len(room.ids) > count or end > size:  # another snapshot has gone on from here, or full
            room = room.grown(count, max(size, end + end // 2))
        behind = len(upserts)
        live = np.concatenate([self._live, np.ones(behind, bool)])
        shown = np.concatenate([self._may, np.array([i not in hidden for i in upserts], bool)])
        places = dict(self._places)
        for item_id in chain(upserts, deletes):
            place = places.pop(item_id, None)
            if place is None:
                place = self.main.place(item_id)
            if place >= 0:
                live[place] = shown[place] = False
        start = len(self.main)
        for item_id, views in upserts.items():
            places[item_id] = start + len(room.ids)
            room.append(item_id, views, item_id in hidden, versions.get(item_id, 0))
        added = columns or Columns.of({} for _ in upserts)
        pieces = appended(self._columns, added)
        return Snapshot(self.main, room, end, live, shown, places, pieces)

    @property
    def overgrown(self) -> bool:
        """Whether so much came or went since the main block was made that a new one is due."""
        behind, start = self._count, len(self.main)
        dead = start + behind - len(self)
        return behind > max(MERGE_AT, MERGE_SHARE * start) or dead > max(
            MERGE_AT, DEAD_SHARE * (start + behind)
        )

    @property
    def choked(self) -> bool:
        """Whether so much is due that searches are slow of it."""
        return self._count > CHOKED * max(MERGE_AT, MERGE_SHARE * len(self.main))

    def rebuilt(self) -> Rebuilt:
        """A main block of all of this snapshot; takes its time, and disturbs nobody."""
        main, recent, count = self.main, self.recent, self._count
        end = len(main) + count
        if end - len(self) > max(MERGE_AT, DEAD_SHARE * end):
            return self._compacted()
        block = Main(
            main.ids.joined(Ids.of(recent.ids)),
            {
                view: vectors.joined(recent.tables[view], recent.present[view])
                for view, vectors in main.vectors.items()
            },
            {
                view: np.concatenate([present, recent.present[view]])
                for view, present in main.present.items()
            },
            np.concatenate([main.hidden, recent.hidden]),
            np.concatenate([main.versions, recent.versions]),
            main.columns.joined(self._behind()),
        )
        return Rebuilt(block, end, None)

    def _compacted(self) -> Rebuilt:
        kept = np.flatnonzero(self._live)
        start = len(self.main)
        old, new = kept[kept < start], kept[kept >= start] - start
        tables, present = self.gather(kept)
        block = Main(
            Ids.of(map(self.item_id, kept.tolist())),
            {
                view: vectors_of(
                    tables.pop(view),
                    present[view],
                    quantised=self.main.vectors[view].quantised,
                    ranges=self.main.vectors[view].ranges,
                )
                for view in list(tables)
            },
            present,
            np.concatenate([self.main.hidden[old], self.recent.hidden[new]]),
            np.concatenate([self.main.versions[old], self.recent.versions[new]]),
            self.main.columns.take(old).joined(self._behind().take(new)),
        )
        return Rebuilt(block, start + self._count, kept)

    def _behind(self) -> Columns:
        """Of the places behind the main block, all columns in one."""
        return Columns.joining(self._columns)

    def on(self, rebuilt: Rebuilt) -> "Snapshot":
        """The same items, over a main block made of this snapshot or of one before it."""
        first = rebuilt.end - len(self.main)  # of the places behind, the first that it lacks
        behind = self._count - first
        room = self._room.part(first, self._count, max(FIRST_ROOM, behind + behind // 2))
        start = len(rebuilt.main)
        live, shown = self._live, self._may
        if rebuilt.kept is not None:
            old = np.concatenate([rebuilt.kept, np.arange(rebuilt.end, rebuilt.end + behind)])
            live, shown = live[old], shown[old]
        places = {
            item_id: start + place - rebuilt.end
            for item_id, place in self._places.items()
            if place >= rebuilt.end
        }
        columns = (self._behind().take(np.arange(first, self._count)),) if behind else ()
        return Snapshot(rebuilt.main, room, behind, live, shown, places, columns)
