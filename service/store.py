"""The catalogue store: items and vectors in SQLite, and the index over them, kept in step."""

import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.item import Item
from service.errors import StorageFull
from service.index import Snapshot

if TYPE_CHECKING:
    from models.bundle import Bundle

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
SCHEMA = 1
FILE = "catalogue.sqlite"
LOCK = "catalogue.lock"

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    row INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL UNIQUE,
    attributes TEXT NOT NULL,
    llm_vector BLOB,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE TABLE vectors (
    row INTEGER NOT NULL REFERENCES items (row),
    view TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (row, view)
) WITHOUT ROWID;
"""


class CatalogueError(RuntimeError):
    """The catalogue on disk cannot be used; the message says why and what to do."""


class WrongVector(ValueError):
    """A vector that must not enter the catalogue; the message names view, item and defect."""


class Entry(NamedTuple):
    """An item with its vectors: the LLM vector (d_llm,), and (W,) of each view it has."""

    item: Item
    llm_vector: Floats | None
    views: Mapping[str, Floats]


class CatalogueStore:
    """Every item of the catalogue, durably; made by CatalogueStore.open.

    A change is committed (WAL, synchronous=FULL) before the method returns and visible in
    `snapshot` when it does; the index changes in the order of the commits. Methods block and
    may be called from any thread.

    Attributes:
        snapshot: the index as of the latest change; read it once for each request.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        lock: IO[bytes],
        widths: Mapping[str, int],
        llm_dim: int,
        snapshot: Snapshot,
    ) -> None:
        self.snapshot = snapshot
        self._database = database
        self._lock_file = lock
        self._widths = dict(widths)
        self._llm_dim = llm_dim
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, bundle: "Bundle") -> "CatalogueStore":
        """The store in a folder; a new one is seeded with the bundle's items, once and whole.

        Raises:
            CatalogueError: another process has it open, or it belongs to another bundle or a
                newer version, or it is damaged, or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("ab")
        except OSError as error:
            raise CatalogueError(f"{folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise CatalogueError(
                f"{folder} is in use by another process; stop it or choose another "
                "LLMEMB_CATALOGUE_DIR"
            ) from None
        path = folder / FILE
        database: sqlite3.Connection | None = None
        try:
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            widths = {name: view.width for name, view in bundle.views.items()}
            _prepare(database, path, bundle)
            snapshot = Snapshot.of(_read_vectors(database, path, widths), widths)
        except sqlite3.Error as error:
            _close(database, lock)
            if _is_full(error):
                raise CatalogueError(f"there is no room on the disk for {path}") from None
            raise CatalogueError(
                f"{path} is damaged ({error}); put a backup in its place or choose another "
                "LLMEMB_CATALOGUE_DIR"
            ) from None
        except BaseException:
            _close(database, lock)
            raise
        return cls(database, lock, widths, bundle.manifest.llm_dim, snapshot)

    def close(self) -> None:
        """Let the folder go; the store is not to be used any more."""
        with self._lock:
            _close(self._database, self._lock_file)

    def get(self, item_id: str) -> Item | None:
        """The item of an id."""
        with self._lock:
            row = self._database.execute(
                "SELECT attributes FROM items WHERE item_id = ?", [item_id]
            ).fetchone()
        return row and Item(item_id=item_id, attributes=json.loads(row[0]))

    def get_many(self, item_ids: Sequence[str]) -> list[Item | None]:
        """The items of ids, in their order; None where there is no such item."""
        return [self.get(item_id) for item_id in item_ids]

    def put(self, entries: Sequence[Entry]) -> list[bool]:
        """Have items with these attributes in the catalogue: all or, on any error, none.

        An item that stands there with the same attributes is left as it is.

        Returns:
            Of each, whether it is new.

        Raises:
            WrongVector: a vector has another width than its view, or is not finite.
            StorageFull: the disk is full.
        """
        for entry in entries:
            self._check(entry)
        created = []
        changed: dict[str, Mapping[str, Floats]] = {}
        with self._lock:
            with _transaction(self._database):
                for entry in entries:
                    is_new, is_changed = _upsert(self._database, entry)
                    created.append(is_new)
                    if is_changed:
                        changed[entry.item.item_id] = entry.views
            if changed:
                self.snapshot = self.snapshot.with_changes(changed, (), self._widths)
        return created

    def delete(self, item_id: str) -> bool:
        """Take an item out for good; whether it was there.

        Raises:
            StorageFull: the disk is full.
        """
        with self._lock:
            with _transaction(self._database):
                found = self._database.execute(
                    "SELECT row FROM items WHERE item_id = ?", [item_id]
                ).fetchone()
                if found:
                    self._database.execute("DELETE FROM vectors WHERE row = ?", found)
                    self._database.execute("DELETE FROM items WHERE row = ?", found)
            if found:
                self.snapshot = self.snapshot.with_changes({}, [item_id], self._widths)
        return bool(found)

    def _check(self, entry: Entry) -> None:
        vectors = dict(entry.views)
        widths = self._widths
        if entry.llm_vector is not None:
            vectors["llm"] = entry.llm_vector
            widths = {**widths, "llm": self._llm_dim}
        for view, vector in vectors.items():
            if view not in widths:
                raise WrongVector(f"item {entry.item.item_id!r}: there is no view {view!r}")
            if vector.shape != (widths[view],):
                raise WrongVector(
                    f"item {entry.item.item_id!r}: a vector of view {view!r} has shape "
                    f"{vector.shape}, not ({widths[view]},)"
                )
            if not np.isfinite(vector).all():
                raise WrongVector(
                    f"item {entry.item.item_id!r}: the vector of view {view!r} is not finite"
                )


def _close(database: sqlite3.Connection | None, lock: IO[bytes]) -> None:
    if database:
        database.close()
    lock.close()  # and with it the flock


def _is_full(error: sqlite3.Error) -> bool:
    return "full" in str(error)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end, or change nothing."""
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except BaseException as error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error) and _is_full(error):
            raise StorageFull("the disk of the catalogue is full; nothing was changed") from None
        raise


def _prepare(database: sqlite3.Connection, path: Path, bundle: "Bundle") -> None:
    """Set the connection up, and seed a new file, or make sure that it is one of ours."""
    schema = database.execute("PRAGMA user_version").fetchone()[0]
    if schema > SCHEMA:
        raise CatalogueError(
            f"{path} has schema {schema} and this version knows {SCHEMA}; run the newer version "
            "or choose another LLMEMB_CATALOGUE_DIR"
        )
    mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise CatalogueError(f"the file system of {path} cannot hold a write-ahead log")
    database.execute("PRAGMA synchronous=FULL")
    if schema == 0:
        if database.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise CatalogueError(f"{path} is no catalogue; choose another LLMEMB_CATALOGUE_DIR")
        _seed(database, bundle)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the file's own name
        finally:
            os.close(folder)
        return
    meta = dict(database.execute("SELECT key, value FROM meta"))
    if meta.get("bundle_hash") != bundle.bundle_hash:
        raise CatalogueError(
            f"{path} belongs to bundle {str(meta.get('bundle_hash'))[:12]}… and this is "
            f"{bundle.bundle_hash[:12]}…; choose another LLMEMB_CATALOGUE_DIR or open the old "
            "bundle"
        )


def _seed(database: sqlite3.Connection, bundle: "Bundle") -> None:
    """Write the bundle's items in one transaction; killed in its middle, the file stays empty."""
    tables = bundle.training_views()
    with _transaction(database):
        for statement in TABLES.split(";"):
            database.execute(statement)
        now = time.time()
        for row, item in enumerate(bundle.catalogue):
            views = {name: items[row] for name, (items, present) in tables.items() if present[row]}
            _insert(database, Entry(item, bundle.llm_vectors[row], views), now)
        meta = {"bundle_hash": bundle.bundle_hash, "seeded": str(len(bundle.catalogue))}
        database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        database.execute(f"PRAGMA user_version={SCHEMA}")
    log.info("seeded the catalogue with %d items of the bundle", len(bundle.catalogue))


def _json(item: Item) -> str:
    return json.dumps(item.attributes, ensure_ascii=False, sort_keys=True)


def _blob(vector: Floats) -> bytes:
    return vector.astype("<f4").tobytes()


def _insert(database: sqlite3.Connection, entry: Entry, now: float) -> None:
    llm = None if entry.llm_vector is None else _blob(entry.llm_vector)
    row = database.execute(
        "INSERT INTO items (item_id, attributes, llm_vector, created, updated) "
        "VALUES (?, ?, ?, ?, ?)",
        [entry.item.item_id, _json(entry.item), llm, now, now],
    ).lastrowid
    _insert_vectors(database, row, entry)


def _insert_vectors(database: sqlite3.Connection, row: int | None, entry: Entry) -> None:
    database.executemany(
        "INSERT INTO vectors (row, view, vector) VALUES (?, ?, ?)",
        [(row, view, _blob(vector)) for view, vector in entry.views.items()],
    )


def _upsert(database: sqlite3.Connection, entry: Entry) -> tuple[bool, bool]:
    """Write an item; whether it is new, and whether anything changed."""
    found: tuple[int, str] | None = database.execute(
        "SELECT row, attributes FROM items WHERE item_id = ?", [entry.item.item_id]
    ).fetchone()
    if found is None:
        _insert(database, entry, time.time())
        return True, True
    row, attributes = found
    if attributes == _json(entry.item):
        return False, False
    llm = None if entry.llm_vector is None else _blob(entry.llm_vector)
    database.execute(
        "UPDATE items SET attributes = ?, llm_vector = ?, updated = ? WHERE row = ?",
        [_json(entry.item), llm, time.time(), row],
    )
    database.execute("DELETE FROM vectors WHERE row = ?", [row])
    _insert_vectors(database, row, entry)
    return False, True


def _read_vectors(
    database: sqlite3.Connection, path: Path, widths: Mapping[str, int]
) -> dict[str, dict[str, Floats]]:
    ids: dict[int, str] = dict(database.execute("SELECT row, item_id FROM items ORDER BY row"))
    items: dict[str, dict[str, Floats]] = {item_id: {} for item_id in ids.values()}
    stored: Iterator[tuple[int, str, Any]] = database.execute(
        "SELECT row, view, vector FROM vectors"
    )
    for row, view, blob in stored:
        vector = np.frombuffer(blob, "<f4").astype(np.float32)
        if row not in ids or vector.shape != (widths.get(view),) or not np.isfinite(vector).all():
            raise CatalogueError(
                f"{path} is damaged (a vector of view {view!r} of item {ids.get(row)!r}); put a "
                "backup in its place or choose another LLMEMB_CATALOGUE_DIR"
            )
        items[ids[row]][view] = vector
    return items
