"""The folder of a catalogue as it is opened: locked, seeded, checked, brought up to date, read."""

import fcntl
import json
import logging
import sqlite3
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from service import beside, generations
from service.columns import Columns
from service.ids import Ids
from service.index import Main, Snapshot, Versions
from service.rows import Entry, Writing
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
from service.seal import unseal
from service.upkeep import KEEP_FROM
from service.vectors import Floats, Mask, Places

if TYPE_CHECKING:
    from models.bundle import Bundle

TOGETHER = 10_000  # vectors, or items, that are read at once
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
    return CatalogueError(
        f"{path} is damaged ({fact}); restore a backup to a new folder by `python -m service "
        f"restore`, or {ELSEWHERE}"
    )


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


def read_snapshot(
    database: sqlite3.Connection,
    path: Path,
    of: generations.Of,
    pause: Callable[[], None] = lambda: None,
) -> tuple[Snapshot, int]:
    """The index of a catalogue; and the latest version that is on disk as an index, or 0.

    The newest generation, and what came after it; where there is none, all is read.

    Who has no view is hidden: there is nothing to rank it by.

    Args:
        pause: is called after some work; may raise.

    Raises:
        CatalogueError: a vector is not what its view has, or attributes are none.
    """
    stored = _Stored.read(database)
    generation = generations.newest(path.parent, of)
    if generation is not None:
        snapshot = _over(generation, stored)
        if snapshot is not None:
            new = np.flatnonzero(stored.versions > generation.number)
            tables, present = _read_tables(database, path, stored.some(new), of.widths, pause)
            columns = _read_columns(database, path, generation.number, of.filterable, pause)
            return _with_new(snapshot, stored, new, tables, present, columns), generation.number
        log.warning("the index on disk lacks items that the catalogue has, and is not used")
    if len(stored.ids) >= KEEP_FROM:
        log.info("making the index of %d items anew", len(stored.ids))
    tables, present = _read_tables(database, path, stored, of.widths, pause)
    hidden = stored.hidden | ~_seen(present, len(stored.ids))
    snapshot = Snapshot.of_tables(
        *(stored.ids, tables, present, hidden, stored.versions),
        columns=_read_columns(database, path, 0, of.filterable, pause),
        quantised=of.quantised,
    )
    return snapshot, 0


class _Stored(NamedTuple):
    """The items of a catalogue, by version."""

    ids: Ids
    rows: Versions
    versions: Versions
    hidden: Mask

    @classmethod
    def read(cls, database: sqlite3.Connection) -> "_Stored":
        # All in the index over versions: the attributes need not be read.
        found = database.execute("SELECT item_id, row, version, hidden FROM items ORDER BY version")
        rows, versions, hidden = array("q"), array("q"), array("b")

        def ids() -> Iterator[str]:
            # One by one: what all rows together take is not given back for long.
            for item_id, row, version, hides in found:
                rows.append(row)
                versions.append(version)
                hidden.append(hides)
                yield item_id

        return cls(
            Ids.of(ids()),
            np.array(rows, np.int64),
            np.array(versions, np.int64),
            np.array(hidden, bool),
        )

    def some(self, at: Places) -> "_Stored":
        return _Stored(
            Ids.of(self.ids[each] for each in at.tolist()),
            *(self.rows[at], self.versions[at], self.hidden[at]),
        )


def _over(generation: generations.Generation, stored: _Stored) -> Snapshot | None:
    """What a generation knows of the items; None if it lacks one that it should know."""
    at = np.searchsorted(stored.versions, generation.versions)
    at = np.minimum(at, max(len(stored.versions) - 1, 0))
    live = (
        stored.versions[at] == generation.versions
        if len(stored.versions)
        else np.zeros(len(at), bool)
    )
    once = bool((np.diff(stored.versions) > 0).all())
    if not once or int(live.sum()) != int((stored.versions <= generation.number).sum()):
        return None
    ids = stored.ids
    if not live.all() or not np.array_equal(at, np.arange(len(ids))):
        there = zip(at.tolist(), live.tolist(), strict=True)
        ids = Ids.of(stored.ids[each] if alive else "" for each, alive in there)
    hidden = np.zeros(len(at), bool)
    hidden[live] = stored.hidden[at[live]]
    hidden |= ~_seen(generation.present, len(at))
    main = Main(
        *(ids, generation.vectors, generation.present, hidden, generation.versions),
        generation.columns,
    )
    return Snapshot.over(main, live)


def _with_new(
    snapshot: Snapshot,
    stored: _Stored,
    new: Places,
    tables: Mapping[str, Floats],
    present: Mapping[str, Mask],
    columns: Columns,
) -> Snapshot:
    upserts, hidden, versions = {}, set(), {}
    for row, at in enumerate(new.tolist()):
        item_id = stored.ids[at]
        upserts[item_id] = {view: tables[view][row] for view in tables if present[view][row]}
        versions[item_id] = int(stored.versions[at])
        if stored.hidden[at] or not upserts[item_id]:
            hidden.add(item_id)
    return snapshot.with_changes(upserts, (), hidden, versions, columns) if upserts else snapshot


def _read_columns(
    database: sqlite3.Connection,
    path: Path,
    after: int,
    names: Collection[str] | None,
    pause: Callable[[], None],
) -> Columns:
    """The attributes of the items of later versions, by version; `names` as Columns.of.

    Raises:
        CatalogueError: those of an item are no JSON.
    """
    rows = database.execute(
        "SELECT attributes FROM items WHERE version > ? ORDER BY version", [after]
    )

    def read() -> Iterator[dict[str, Any]]:
        while found := rows.fetchmany(TOGETHER):
            pause()
            for (attributes,) in found:
                yield json.loads(attributes)

    try:
        return Columns.of(read(), names)
    except ValueError as error:
        raise damaged(path, f"the attributes of an item: {error}") from None


def _seen(present: Mapping[str, Mask], count: int) -> Mask:
    """(n,) who has any view."""
    seen: Mask = np.any([np.zeros(count, bool), *present.values()], axis=0)
    return seen


def _read_tables(
    database: sqlite3.Connection,
    path: Path,
    stored: _Stored,
    widths: Mapping[str, int],
    pause: Callable[[], None],
) -> tuple[dict[str, Floats], dict[str, Mask]]:
    """Of each view the vectors (n, W) of some items, zeros where one lacks it, and who has it."""
    count = len(stored.ids)
    tables = {view: np.zeros((count, width), np.float32) for view, width in widths.items()}
    present = {view: np.zeros(count, bool) for view in widths}
    order = np.argsort(stored.rows)
    sorted_rows = stored.rows[order]
    total = database.execute("SELECT count(*) FROM items").fetchone()[0]
    if count == total:
        asked = database.execute("SELECT row, view, vector FROM vectors")
    else:
        asked = database.execute(
            "SELECT row, view, vector FROM vectors WHERE row IN (SELECT value FROM json_each(?))",
            [json.dumps(stored.rows.tolist())],
        )
    while found := asked.fetchmany(TOGETHER):
        pause()
        for view in {view for _, view, _ in found}:
            rows = np.array([row for row, each, _ in found if each == view], np.int64)
            opened = [unseal(vector) for _, each, vector in found if each == view]
            bodies = [body for body in opened if body is not None]
            at = np.minimum(np.searchsorted(sorted_rows, rows), max(count - 1, 0))
            width = widths.get(view)
            if width is None or not count or (sorted_rows[at] != rows).any():
                raise damaged(path, f"a vector of view {view!r} of nobody")
            if len(bodies) < len(opened):
                raise damaged(path, f"a vector of view {view!r} that is not what was written")
            if any(len(body) != 4 * width for body in bodies):
                raise damaged(path, f"a vector of view {view!r} that is not {width} wide")
            vectors = np.frombuffer(b"".join(bodies), "<f4").reshape(-1, width)
            if not np.isfinite(vectors).all():
                raise damaged(path, f"a vector of view {view!r} that is not finite")
            tables[view][order[at]] = vectors
            present[view][order[at]] = True
    return tables, present


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
