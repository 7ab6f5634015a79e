"""Items in the tables of a catalogue: written and taken out with all that is derived from them."""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.item import Item
from service.beside import active, forget_row
from service.schema import add_words, count_kinds, drop_words, kinds_of
from service.seal import sealed
from service.versions import Condition

Floats = NDArray[np.float32]


class Entry(NamedTuple):
    """An item as it is to stand in the catalogue.

    Attributes:
        llm_vector: (d_llm,), or None where it is not known.
        views: of each view that the item has, its vector (W,).
        hidden: None leaves it as it is; a new item is not.
        given: whether the vectors came with the request, and not from the attributes.
    """

    item: Item
    llm_vector: Floats | None
    views: Mapping[str, Floats]
    hidden: bool | None = None
    given: bool = False


class Stored(NamedTuple):
    """An item as it stands in the catalogue.

    Attributes:
        views: that it has, where they are stored with it; see catalogue.Store.views_of.
    """

    item: Item
    hidden: bool
    version: int
    views: tuple[str, ...] | None = None


class Outcome(NamedTuple):
    """What became of one write.

    Attributes:
        version: of the item now; None where there is none.
        refused: why nothing was done, where a condition did not hold.
        kept: whether it changed, and its attributes and vectors did not.
    """

    created: bool
    changed: bool
    version: int | None
    hidden: bool
    refused: str | None = None
    kept: bool = False


class _Row(NamedTuple):
    row: int
    attributes: str
    hidden: int
    version: int
    given: int


class Writing:
    """The changes of one transaction; `finish` belongs to it.

    Vectors are those of the active bundle. An item that changes loses the ones that other bundles
    have of it, so that none is ever of attributes that are gone.

    Args:
        changes: how many the catalogue has had.

    Attributes:
        changes: the same with those made here.
        kinds: by how much the number of items with an attribute of a name and kind changes.
    """

    def __init__(self, database: sqlite3.Connection, changes: int) -> None:
        self._database = database
        self._before = changes
        self.changes = changes
        self.kinds: Counter[tuple[str, str]] = Counter()
        self._active = active(database)

    def put(self, entry: Entry, condition: Condition) -> Outcome:
        """Have an item so; one that stands there so already is left as it is.

        Vectors that are made of attributes are the same where those are.
        """
        found = self._find(entry.item.item_id)
        refused = condition.refusal(found and found.version)
        if refused:
            return _refused(found, refused)
        if found is None:
            return Outcome(True, True, self.insert(entry), bool(entry.hidden))
        hidden = bool(found.hidden) if entry.hidden is None else entry.hidden
        same = found.attributes == written(entry.item) and found.given == entry.given
        if same and entry.given:
            same = self._has(found.row, entry)
        if same and hidden == bool(found.hidden):
            return Outcome(False, False, found.version, hidden)
        if same:
            self._hide(found.row, hidden)
        else:
            self._update(found, entry, hidden)
        return Outcome(False, True, self.changes, hidden, kept=same)

    def hide(self, item_id: str, hidden: bool, condition: Condition) -> Outcome:
        """Have an item hidden, or not; `version` is None where there is none."""
        found = self._find(item_id)
        refused = condition.refusal(found and found.version)
        if refused or found is None:
            return _refused(found, refused)
        changed = hidden != bool(found.hidden)
        if changed:
            self._hide(found.row, hidden)
        return Outcome(False, changed, self.changes if changed else found.version, hidden)

    def delete(self, item_id: str, condition: Condition) -> Outcome:
        """Take an item out."""
        found = self._find(item_id)
        refused = condition.refusal(found and found.version)
        if refused or found is None:
            return _refused(found, refused)
        self.changes += 1
        self._forget(found, item_id)
        forget_row(self._database, found.row)
        self._database.execute("DELETE FROM items WHERE row = ?", [found.row])
        return Outcome(False, True, None, False)

    def insert(self, entry: Entry) -> int:
        """Write an item that is not there; its version."""
        self.changes += 1
        now = time.time()
        self._database.execute(
            "INSERT INTO items "
            "(row, item_id, attributes, created, updated, version, hidden, given) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                *(self.changes, entry.item.item_id, written(entry.item), now, now),
                *(self.changes, bool(entry.hidden), entry.given),
            ],
        )
        self._add(self.changes, entry)
        return self.changes

    def finish(self) -> None:
        """Write what was counted; the last step of the transaction."""
        if self.changes != self._before:
            self._database.execute(
                "UPDATE meta SET value = ? WHERE key = 'changes'", [str(self.changes)]
            )
        count_kinds(self._database, self.kinds)

    def _find(self, item_id: str) -> _Row | None:
        found = self._database.execute(
            "SELECT row, attributes, hidden, version, given FROM items WHERE item_id = ?",
            [item_id],
        ).fetchone()
        return found and _Row(*found)

    def _update(self, found: _Row, entry: Entry, hidden: bool) -> None:
        self.changes += 1
        self._forget(found, entry.item.item_id)
        self._database.execute(
            "UPDATE items SET attributes = ?, updated = ?, version = ?, hidden = ?, given = ? "
            "WHERE row = ?",
            [
                *(written(entry.item), time.time(), self.changes),
                *(hidden, entry.given, found.row),
            ],
        )
        forget_row(self._database, found.row)
        self._add(found.row, entry)

    def _hide(self, row: int, hidden: bool) -> None:
        self.changes += 1
        self._database.execute(
            "UPDATE items SET hidden = ?, updated = ?, version = ? WHERE row = ?",
            [hidden, time.time(), self.changes, row],
        )

    def _add(self, row: int, entry: Entry) -> None:
        self._database.executemany(
            "INSERT INTO item_vectors (bundle, row, view, vector) VALUES (?, ?, ?, ?)",
            [(self._active.number, row, view, sealed(each)) for view, each in entry.views.items()],
        )
        if entry.llm_vector is not None:
            self._database.execute(
                "INSERT INTO llm_vectors (encoder, row, vector) VALUES (?, ?, ?)",
                [self._active.encoder, row, sealed(entry.llm_vector)],
            )
        add_words(self._database, row, entry.item.item_id, entry.item.attributes)
        self.kinds.update(kinds_of(entry.item.attributes))

    def _forget(self, found: _Row, item_id: str) -> None:
        attributes: dict[str, Any] = json.loads(found.attributes)
        drop_words(self._database, found.row, item_id, attributes)
        self.kinds.subtract(kinds_of(attributes))

    def _has(self, row: int, entry: Entry) -> bool:
        """Whether exactly an entry's vectors are stored."""
        stored = dict(
            self._database.execute("SELECT view, vector FROM vectors WHERE row = ?", [row])
        )
        llm = self._database.execute(
            "SELECT vector FROM llm_vectors WHERE encoder = ? AND row = ?",
            [self._active.encoder, row],
        ).fetchone()
        views = {view: sealed(vector) for view, vector in entry.views.items()}
        given = None if entry.llm_vector is None else (sealed(entry.llm_vector),)
        return bool(stored == views and llm == given)


def _refused(found: _Row | None, reason: str | None) -> Outcome:
    if found is None:
        return Outcome(False, False, None, False, reason)
    return Outcome(False, False, found.version, bool(found.hidden), reason)


def written(item: Item) -> str:
    """An item's attributes as they are stored: the same text for the same attributes."""
    return json.dumps(item.attributes, ensure_ascii=False, sort_keys=True)
