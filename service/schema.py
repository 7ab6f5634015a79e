"""The tables of a catalogue on disk, their versions, and the way from one to the next."""

import json
import logging
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from models.item import is_missing
from service.errors import StorageFull
from service.seal import seal

log = logging.getLogger(__name__)

SCHEMA = 4
FILE = "catalogue.sqlite"
LOCK = "catalogue.lock"
ELSEWHERE = "choose another LLMEMB_CATALOGUE_DIR"

# A row and a version are numbers of changes of the catalogue: the one that brought the item, and
# the latest one of it. They only grow, so no number ever means two things, also where an item is
# taken out and comes back.
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    row INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL UNIQUE,
    attributes TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    version INTEGER NOT NULL DEFAULT 1,
    hidden INTEGER NOT NULL DEFAULT 0,
    given INTEGER NOT NULL DEFAULT 0
);
"""
# What version 3 has and version 2 had not: vectors of more bundles than one beside each other. A
# row has of a bundle, or of an encoder, the vectors of its latest attributes, or none. `vectors`
# shows those of the active bundle, which is the one whose hash stands in `meta`; see
# service.beside. Since version 4 every vector has its checksum, see service.seal.
BESIDE = """
CREATE TABLE bundles (
    bundle INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    encoder INTEGER NOT NULL,
    encoder_hash TEXT NOT NULL,
    position INTEGER NOT NULL,
    making TEXT NOT NULL
);
CREATE TABLE item_vectors (
    bundle INTEGER NOT NULL REFERENCES bundles (bundle),
    row INTEGER NOT NULL REFERENCES items (row),
    view TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (bundle, row, view)
) WITHOUT ROWID;
CREATE TABLE llm_vectors (
    encoder INTEGER NOT NULL,
    row INTEGER NOT NULL REFERENCES items (row),
    vector BLOB NOT NULL,
    PRIMARY KEY (encoder, row)
) WITHOUT ROWID;
CREATE VIEW vectors AS SELECT row, view, vector FROM item_vectors WHERE bundle = (
    SELECT bundle FROM bundles WHERE hash = (SELECT value FROM meta WHERE key = 'bundle_hash')
);
"""
# What version 2 has and version 1 had not. The words are kept without the text they come from,
# which `items` has: who takes a row out of such a table says again what stood there.
DERIVED = """
CREATE VIRTUAL TABLE words USING fts5(
    text, content='', tokenize='unicode61 remove_diacritics 2'
);
CREATE TABLE attribute_kinds (
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    items INTEGER NOT NULL,
    PRIMARY KEY (name, kind)
) WITHOUT ROWID;
CREATE TABLE imports (
    import_id TEXT PRIMARY KEY,
    line INTEGER NOT NULL,
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    unchanged INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    error TEXT,
    updated REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX items_by_version ON items (version, item_id, hidden);
"""
ADDED_TO_ITEMS = ("version INTEGER NOT NULL DEFAULT 1", "hidden INTEGER NOT NULL DEFAULT 0",
                  "given INTEGER NOT NULL DEFAULT 0")  # fmt: skip


class CatalogueError(RuntimeError):
    """The catalogue on disk cannot be used; the message says why and what to do."""


def is_full(error: sqlite3.Error) -> bool:
    """Whether it is the disk that has no room."""
    return "full" in str(error)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end, or change nothing.

    Raises:
        StorageFull: the disk is full.
    """
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except BaseException as error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error) and is_full(error):
            raise StorageFull("the disk of the catalogue is full; nothing was changed") from None
        raise


def defect(database: sqlite3.Connection, check: Literal["quick", "integrity"]) -> str | None:
    """What is wrong with a database's pages, in one line; None if nothing is.

    Args:
        check: `integrity` also compares every index with its table.
    """
    verdict: str = database.execute(f"PRAGMA {check}_check(1)").fetchone()[0]
    return None if verdict == "ok" else verdict.splitlines()[-1]


def create(database: sqlite3.Connection) -> None:
    """The tables of an empty catalogue, within a transaction."""
    _run(database, TABLES + DERIVED + BESIDE)
    _number(database, 0)
    database.execute(f"PRAGMA user_version={SCHEMA}")


def require_known(schema: int, path: Path) -> None:
    """Make sure that a version is none that comes after this one.

    Raises:
        CatalogueError: it does.
    """
    if schema > SCHEMA:
        raise CatalogueError(
            f"{path} has schema {schema} and this version knows {SCHEMA}; run the newer version "
            f"or {ELSEWHERE}"
        )


def migrate(database: sqlite3.Connection, schema: int, bundle_hash: str, encoder_hash: str) -> None:
    """Bring a catalogue of an older version to this one, whole or, on any error, not at all.

    Args:
        bundle_hash: of the bundle that it belongs to.

    Raises:
        StorageFull: the disk is full.
    """
    if schema == SCHEMA:
        return
    with transaction(database):
        if schema == 1:
            _from_1_to_2(database)
        if schema <= 2:
            _from_2_to_3(database, bundle_hash, encoder_hash)
        _from_3_to_4(database)
        database.execute(f"PRAGMA user_version={SCHEMA}")
    log.info("brought the catalogue from schema %d to %d", schema, SCHEMA)


def _from_1_to_2(database: sqlite3.Connection) -> None:
    for column in ADDED_TO_ITEMS:
        database.execute(f"ALTER TABLE items ADD COLUMN {column}")
    database.execute("UPDATE items SET version = row")
    _run(database, DERIVED)
    kinds: Counter[tuple[str, str]] = Counter()
    last = 1
    for row, item_id, stored in database.execute(
        "SELECT row, item_id, attributes FROM items ORDER BY row"
    ):
        attributes = json.loads(stored)
        add_words(database, row, item_id, attributes)
        kinds.update(kinds_of(attributes))
        last = row
    count_kinds(database, kinds)
    _number(database, last)


def _from_2_to_3(database: sqlite3.Connection, bundle_hash: str, encoder_hash: str) -> None:
    database.execute("ALTER TABLE vectors RENAME TO vectors_of_one")
    _run(database, BESIDE)
    database.execute(
        "INSERT INTO bundles (bundle, hash, encoder, encoder_hash, position, making) "
        "SELECT 1, ?, 1, ?, value, ? FROM meta WHERE key = 'changes'",
        [bundle_hash, encoder_hash, secrets.token_hex(8)],
    )
    database.execute("INSERT INTO item_vectors SELECT 1, row, view, vector FROM vectors_of_one")
    database.execute("DROP TABLE vectors_of_one")
    database.execute(
        "INSERT INTO llm_vectors SELECT 1, row, llm_vector FROM items WHERE llm_vector NOT NULL"
    )
    database.execute("ALTER TABLE items DROP COLUMN llm_vector")
    # What the first of version 2 had not.
    database.execute("UPDATE items SET version = row WHERE version = 1 AND row > 1")
    database.execute(
        "CREATE INDEX IF NOT EXISTS items_by_version ON items (version, item_id, hidden)"
    )


def _from_3_to_4(database: sqlite3.Connection) -> None:
    database.create_function("sealed", 1, seal, deterministic=True)
    for table in ("item_vectors", "llm_vectors"):
        database.execute(f"UPDATE {table} SET vector = sealed(vector)")  # noqa: S608


def _number(database: sqlite3.Connection, changes: int) -> None:
    """Give a catalogue its own name, and its changes a number."""
    meta = {"catalogue_id": secrets.token_hex(8), "changes": str(changes)}
    database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())


def _run(database: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):
        database.execute(statement)  # executescript would commit


def add_words(
    database: sqlite3.Connection, row: int, item_id: str, attributes: Mapping[str, Any]
) -> None:
    """Have an item found by the words of its id and attributes."""
    database.execute(
        "INSERT INTO words (rowid, text) VALUES (?, ?)", [row, words_of(item_id, attributes)]
    )


def drop_words(
    database: sqlite3.Connection, row: int, item_id: str, attributes: Mapping[str, Any]
) -> None:
    """Undo add_words; with other attributes than it was given, searches would be wrong after."""
    database.execute(
        "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)",
        [row, words_of(item_id, attributes)],
    )


def words_of(item_id: str, attributes: Mapping[str, Any]) -> str:
    """The text by which an item is found. To change it takes a new version of the schema."""
    return "\n".join([item_id, *(part for value in attributes.values() for part in _texts(value))])


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def kinds_of(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and kind of each attribute that says something."""
    for name, value in attributes.items():
        if not is_missing(value):
            yield name, _kind(value)


def _kind(value: object) -> str:
    if isinstance(value, list):
        kinds = {_kind(part) for part in value if not is_missing(part)}
        (only,) = kinds if len(kinds) == 1 else ("",)
        return (
            "list of lists" if only.startswith("list") else f"list of {only}s" if only else "list"
        )
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def count_kinds(database: sqlite3.Connection, kinds: Mapping[tuple[str, str], int]) -> None:
    """Add to how many items have an attribute of a name and kind; negative takes away."""
    database.executemany(
        "INSERT INTO attribute_kinds (name, kind, items) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET items = items + excluded.items",
        [(name, kind, count) for (name, kind), count in kinds.items() if count],
    )
    if any(count < 0 for count in kinds.values()):
        database.execute("DELETE FROM attribute_kinds WHERE items = 0")
