"""Blocks of places, of which a snapshot of the catalogue is made; see service.index.

Shapes: n places, W = a view's width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.columns import Columns
from service.ids import Ids
from service.vectors import Exact, Floats, Mask, Places, Vectors

Views = Mapping[str, Floats]
Versions = NDArray[np.int64]


@dataclass(frozen=True)
class Main:
    """The first places, indexed.

    Attributes:
        ids: of the items, by place; where one stands several times, the last holds.
        vectors: of each view, (n, W).
        present: of each view, (n,) which items have it.
        hidden: (n,) which items are never answered.
        versions: (n,) of the items, as they stand there.
        columns: of their attributes, what filters may name.
    """

    ids: Ids
    vectors: Mapping[str, Vectors]
    present: Mapping[str, Mask]
    hidden: Mask
    versions: Versions
    columns: Columns

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def exact(self) -> bool:
        """Whether it is so small that all vectors are compared."""
        return all(isinstance(vectors, Exact) for vectors in self.vectors.values())

    @property
    def tables(self) -> dict[str, Floats]:
        """Of each view, all vectors (n, W); for a block that is exact.

        Raises:
            TypeError: it is not.
        """
        tables = {}
        for view, vectors in self.vectors.items():
            if not isinstance(vectors, Exact):
                raise TypeError(f"the vectors of view {view!r} are clustered")
            tables[view] = vectors.table
        return tables

    def place(self, item_id: str) -> int:
        """Where an item stands or stood last; -1 if it never was here."""
        return self.ids.place(item_id)


class Room:
    """The places behind a main block, in arrays that are longer than what is taken.

    Snapshots share it: each knows how much of it is its own, and only what nobody has is written.
    """

    def __init__(self, widths: Mapping[str, int], size: int) -> None:
        self.ids: list[str] = []
        self.tables = {view: np.zeros((size, width), np.float32) for view, width in widths.items()}
        self.present = {view: np.zeros(size, bool) for view in widths}
        self.hidden = np.zeros(size, bool)
        self.versions = np.zeros(size, np.int64)

    def grown(self, taken: int, size: int) -> "Room":
        """Another, with what is taken of this one."""
        return self.part(0, taken, size)

    def part(self, start: int, end: int, size: int) -> "Room":
        """Another, with a part of this one."""
        room = Room({view: table.shape[1] for view, table in self.tables.items()}, size)
        count = end - start
        room.ids = self.ids[start:end]
        for view, table in self.tables.items():
            room.tables[view][:count] = table[start:end]
            room.present[view][:count] = self.present[view][start:end]
        room.hidden[:count] = self.hidden[start:end]
        room.versions[:count] = self.versions[start:end]
        return room

    def append(self, item_id: str, views: Views, hidden: bool, version: int) -> None:
        """Take one more place; there is one."""
        row = len(self.ids)
        for view, table in self.tables.items():
            self.present[view][row] = view in views  # somebody may have failed here before
            if view in views:
                table[row] = views[view]
        self.hidden[row], self.versions[row] = hidden, version
        self.ids.append(item_id)


@dataclass(frozen=True)
class Recent:
    """The places behind the main block; as Main, but all is an array."""

    ids: Sequence[str]
    tables: Mapping[str, Floats]
    present: Mapping[str, Mask]
    hidden: Mask
    versions: Versions


@dataclass(frozen=True)
class Rebuilt:
    """A main block that says the same as a snapshot did; see index.Snapshot.rebuilt and .on.

    Attributes:
        end: how many places the snapshot had.
        kept: which of them the block has, in its order; None: all, and each keeps its place.
    """

    main: Main
    end: int
    kept: Places | None
