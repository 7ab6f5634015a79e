"""How far imports have come, as the catalogue's database remembers it."""

import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from service.rows import Outcome
from service.schema import transaction

KEPT = 1000  # imports that are remembered, the latest ones


class Progress(NamedTuple):
    """How far an import has come.

    Attributes:
        line: the last one that is durable, with all before it; blank ones count.
        finished: whether the whole of it was read.
        error: what is wrong with the line after, if it ended there.
    """

    line: int = 0
    created: int = 0
    changed: int = 0
    unchanged: int = 0
    finished: bool = False
    error: str | None = None


class Imports:
    """The imports that a catalogue remembers.

    Args:
        lock: of whoever uses the connection.
    """

    def __init__(self, database: sqlite3.Connection, lock: "threading.RLock") -> None:
        self._database = database
        self._lock = lock

    def progress(self, import_id: str) -> Progress | None:
        """How far an import has come; None where it is not known."""
        with self._lock:
            found = self._database.execute(
                "SELECT line, created, changed, unchanged, finished, error FROM imports "
                "WHERE import_id = ?",
                [import_id],
            ).fetchone()
        if found is None:
            return None
        line, created, changed, unchanged, finished, error = found
        return Progress(line, created, changed, unchanged, bool(finished), error)

    def begin(self, import_id: str) -> Progress:
        """Remember an import, and how far it came before; what stopped it then is forgotten.

        Raises:
            StorageFull: the disk is full.
        """
        with self._lock, transaction(self._database):
            self._database.execute(
                "INSERT INTO imports VALUES (?, 0, 0, 0, 0, 0, NULL, ?) ON CONFLICT DO UPDATE "
                "SET finished = 0, error = NULL, updated = excluded.updated",
                [import_id, time.time()],
            )
            self._database.execute(
                "DELETE FROM imports WHERE import_id IN (SELECT import_id FROM imports "
                "ORDER BY updated DESC LIMIT -1 OFFSET ?)",
                [KEPT],
            )
        return self.progress(import_id) or Progress()

    def advance(self, import_id: str, line: int, outcomes: Sequence[Outcome]) -> None:
        """Note, within the transaction that writes items, the last line that is durable with it."""
        created = sum(each.created for each in outcomes)
        changed = sum(each.changed for each in outcomes)
        self._database.execute(
            "UPDATE imports SET line = ?, created = created + ?, changed = changed + ?, "
            "unchanged = unchanged + ?, updated = ? WHERE import_id = ?",
            [line, created, changed - created, len(outcomes) - changed, time.time(), import_id],
        )

    def end(self, import_id: str, error: str | None = None) -> Progress:
        """Note that an import was read to its end, or what is wrong with its next line.

        Raises:
            StorageFull: the disk is full.
        """
        with self._lock, transaction(self._database):
            self._database.execute(
                "UPDATE imports SET finished = ?, error = ?, updated = ? WHERE import_id = ?",
                [error is None, error, time.time(), import_id],
            )
        return self.progress(import_id) or Progress()
