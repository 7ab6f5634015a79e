"""The folder of a catalogue as it is opened: locked, seeded, checked, brought up to date, read."""

import fcntl
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from service import beside
from service.rows import Entry, Floats, Writing
from service.schema import (
    ELSEWHERE,
    FILE,
    LOCK,
    CatalogueError,
    create,
    defect,
    migrate,
    require_known,
    sync,
    transaction,
)

if TYPE_CHECKING:
    from models.bundle import Bundle

log = logging.getLogger(__name__)


def take(folder: Path) -> IO[bytes]:
    """A folder, made where it is not there, for this process alone until the file is closed.

    Raises:
        CatalogueError: another process has it, or it cannot be written.
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
            f"{folder} is in use by another process; stop it or {ELSEWHERE}"
        ) from None
    return lock


def damaged(path: Path, fact: str) -> CatalogueError:
    """The error for a file that says what it cannot have been given."""
    return CatalogueError(f"{path} is damaged ({fact}); put a backup in its place or {ELSEWHERE}")


def prepare(database: sqlite3.Connection, path: Path, bundle: "Bundle") -> None:
    """Set the connection up, and seed a new file, or make sure that it is one of ours.

    Raises:
        CatalogueError: it is none, or of another bundle or a newer version, or damaged.
        StorageFull: the disk is full.
    """
    schema = database.execute("PRAGMA user_version").fetchone()[0]
    require_known(schema, path)
    mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise CatalogueError(f"the file system of {path} cannot hold a write-ahead log")
    database.execute("PRAGMA synchronous=FULL")
    if schema == 0:
        if database.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise CatalogueError(f"{path} is no catalogue; {ELSEWHERE}")
        _seed(database, bundle)
        sync(path.parent)  # the file's own name
        return
    meta = dict(database.execute("SELECT key, value FROM meta"))
    if meta.get("bundle_hash") != bundle.bundle_hash:
        raise CatalogueError(
            f"{path} belongs to bundle {str(meta.get('bundle_hash'))[:12]}… and this is "
            f"{bundle.bundle_hash[:12]}…; {ELSEWHERE} or open the old bundle"
        )
    if wrong := defect(database, "quick"):
        raise damaged(path, wrong)
    migrate(database, schema, bundle.bundle_hash, bundle.encoder_hash)


def _seed(database: sqlite3.Connection, bundle: "Bundle") -> None:
    """Write the bundle's items in one transaction; killed in its middle, the file stays empty."""
    tables = bundle.training_views()
    with transaction(database):
        create(database)
        meta = {"bundle_hash": bundle.bundle_hash, "seeded": str(len(bundle.catalogue))}
        database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        beside.add(database, bundle.bundle_hash, bundle.encoder_hash)
        writing = Writing(database, 0)
        for row, item in enumerate(bundle.catalogue):
            views = {name: items[row] for name, (items, present) in tables.items() if present[row]}
            writing.insert(Entry(item, bundle.llm_vectors[row], views))
        writing.finish()
    log.info("seeded the catalogue with %d items of the bundle", len(bundle.catalogue))


def read_vectors(
    database: sqlite3.Connection, path: Path, widths: Mapping[str, int]
) -> tuple[dict[str, dict[str, Floats]], set[str]]:
    """Of each item, in the order in which they came, its views; and which of them are hidden.

    Who has no view is hidden: there is nothing to rank it by.

    Raises:
        CatalogueError: a vector is not what its view has.
    """
    ids: dict[int, str] = {}
    hidden: set[str] = set()
    for row, item_id, is_hidden in database.execute(
        "SELECT row, item_id, hidden FROM items ORDER BY row"
    ):
        ids[row] = item_id
        if is_hidden:
            hidden.add(item_id)
    items: dict[str, dict[str, Floats]] = {item_id: {} for item_id in ids.values()}
    stored: Iterator[tuple[int, str, Any]] = database.execute(
        "SELECT row, view, vector FROM vectors"
    )
    for row, view, vector in stored:
        numbers = np.frombuffer(vector, "<f4").astype(np.float32)
        if row not in ids or numbers.shape != (widths.get(view),) or not np.isfinite(numbers).all():
            raise damaged(path, f"a vector of view {view!r} of item {ids.get(row)!r}")
        items[ids[row]][view] = numbers
    hidden.update(item_id for item_id, views in items.items() if not views)
    return items, hidden


def active_hash(folder: Path) -> str | None:
    """The hash of the bundle that a catalogue says is active; None where it says nothing.

    Only looked at, by whoever has to know before the folder is opened; `prepare` makes sure.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        uri = f"{path.absolute().as_uri()}?mode=rw"  # the log's index may have to be made
        with closing(sqlite3.connect(uri, uri=True)) as database:
            found = database.execute("SELECT value FROM meta WHERE key = 'bundle_hash'").fetchone()
    except sqlite3.Error:
        return None
    return found and str(found[0])
