"""Vectors of several bundles beside each other in one database: whose are served, whose are made.

Rows of `bundles`: `position` is the change of the catalogue up to which a bundle that is not active
has been told of all. An item whose latest change (its `version`) is behind it has the bundle's
vectors, unless the bundle can make none of it. What the active bundle has is always of now.
"""

import secrets
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

AT_ONCE = 1000  # rows whose vectors are dropped in one transaction; others write in between
PREVIOUS = "previous_bundle"
ONE = "SELECT bundle, encoder, hash, encoder_hash, position, making FROM bundles WHERE hash = ?"


class Known(NamedTuple):
    """A bundle of which the catalogue has vectors.

    Attributes:
        number: under which its vectors stand.
        encoder: under which LLM vectors of its encoder stand; bundles of one encoder share them.
        position: see above.
        making: a random name of this time that its vectors are made; a bundle that comes again
            after its vectors were dropped may be given others.
    """

    number: int
    encoder: int
    bundle_hash: str
    encoder_hash: str
    position: int
    making: str


class Stale(NamedTuple):
    """An item of which a bundle has not been told, as it stands.

    Attributes:
        attributes: as JSON.
        views: the vectors of the bundle that are there already, by view.
        llm_vector: of its encoder, if it is there.
    """

    row: int
    item_id: str
    attributes: str
    hidden: bool
    version: int
    views: Mapping[str, bytes]
    llm_vector: bytes | None


class Made(NamedTuple):
    """Vectors of one item; what is empty or None stays as it is."""

    row: int
    version: int
    views: Mapping[str, bytes]
    llm_vector: bytes | None


def active(database: sqlite3.Connection) -> Known:
    """The bundle that is served.

    Raises:
        KeyError: the database does not say.
    """
    told = database.execute("SELECT value FROM meta WHERE key = 'bundle_hash'").fetchone()
    found = find(database, told[0]) if told else None
    if found is None:
        raise KeyError("no active bundle")
    return found


def find(database: sqlite3.Connection, bundle_hash: str) -> Known | None:
    """A bundle by its hash; None where the catalogue has never met it."""
    found = database.execute(ONE, [bundle_hash]).fetchone()
    return found and Known(*found)


def previous(database: sqlite3.Connection) -> str | None:
    """The hash of the bundle that was active before, if its vectors are kept."""
    found = database.execute("SELECT value FROM meta WHERE key = ?", [PREVIOUS]).fetchone()
    return found and str(found[0])


def add(database: sqlite3.Connection, bundle_hash: str, encoder_hash: str) -> Known:
    """Note a bundle that the catalogue has not met, within a transaction."""
    (latest,) = database.execute("SELECT max(0, max(bundle), max(encoder)) FROM bundles").fetchone()
    number = 1 + (latest or 0)
    shared = database.execute(
        "SELECT encoder FROM bundles WHERE encoder_hash = ?", [encoder_hash]
    ).fetchone()
    encoder = shared[0] if shared else number
    known = Known(number, encoder, bundle_hash, encoder_hash, 0, secrets.token_hex(8))
    database.execute(
        "INSERT INTO bundles (bundle, encoder, hash, encoder_hash, position, making) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        known,
    )
    return known


def left(database: sqlite3.Connection, known: Known) -> int:
    """Of how many items a bundle has not been told."""
    (count,) = database.execute(
        "SELECT count(*) FROM items WHERE version > ?", [known.position]
    ).fetchone()
    return int(count)


def stale(database: sqlite3.Connection, known: Known, most: int) -> list[Stale]:
    """The next items of which a bundle is to be told, in the order of their changes."""
    items = database.execute(
        "SELECT row, item_id, attributes, hidden, version FROM items WHERE version > ? "
        "ORDER BY version LIMIT ?",
        [known.position, most],
    ).fetchall()
    views: dict[int, dict[str, bytes]] = {}
    llm: dict[int, bytes] = {}
    for row, *_ in items:
        views[row] = dict(
            database.execute(
                "SELECT view, vector FROM item_vectors WHERE bundle = ? AND row = ?",
                [known.number, row],
            )
        )
        found = database.execute(
            "SELECT vector FROM llm_vectors WHERE encoder = ? AND row = ?", [known.encoder, row]
        ).fetchone()
        if found:
            llm[row] = found[0]
    return [
        Stale(row, item_id, attributes, bool(hidden), version, views[row], llm.get(row))
        for row, item_id, attributes, hidden, version in items
    ]


def write(database: sqlite3.Connection, known: Known, made: Iterable[Made], position: int) -> Known:
    """Store a bundle's vectors of items, within a transaction; the bundle with its new position.

    Who has changed since, or is gone, is passed over: that change is behind the position.
    """
    for each in made:
        if not database.execute(
            "SELECT 1 FROM items WHERE row = ? AND version = ?", [each.row, each.version]
        ).fetchone():
            continue
        database.executemany(
            "INSERT OR REPLACE INTO item_vectors (bundle, row, view, vector) VALUES (?, ?, ?, ?)",
            [(known.number, each.row, view, vector) for view, vector in each.views.items()],
        )
        if each.llm_vector is not None:
            database.execute(
                "INSERT OR REPLACE INTO llm_vectors (encoder, row, vector) VALUES (?, ?, ?)",
                [known.encoder, each.row, each.llm_vector],
            )
    database.execute("UPDATE bundles SET position = ? WHERE bundle = ?", [position, known.number])
    return known._replace(position=position)


def activate(database: sqlite3.Connection, known: Known) -> None:
    """Have another bundle active, within a transaction; its position must be the latest change."""
    before = active(database)
    database.execute(
        "UPDATE bundles SET position = (SELECT value FROM meta WHERE key = 'changes') "
        "WHERE bundle = ?",
        [before.number],
    )
    told = [("bundle_hash", known.bundle_hash), (PREVIOUS, before.bundle_hash)]
    database.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", told)


def lacking(database: sqlite3.Connection, known: Known) -> list[str]:
    """The ids of all items that have no vector of a bundle."""
    ids = database.execute(
        "SELECT item_id FROM items WHERE NOT EXISTS "
        "(SELECT 1 FROM item_vectors WHERE bundle = ? AND item_vectors.row = items.row)",
        [known.number],
    )
    return [item_id for (item_id,) in ids]


def forget_row(database: sqlite3.Connection, row: int) -> None:
    """Drop all vectors of an item, of whatever bundle, within a transaction."""
    database.execute(
        "DELETE FROM item_vectors WHERE bundle IN (SELECT bundle FROM bundles) AND row = ?", [row]
    )
    database.execute(
        "DELETE FROM llm_vectors WHERE encoder IN (SELECT encoder FROM bundles) AND row = ?", [row]
    )


def distrust(database: sqlite3.Connection, keep: Collection[int]) -> None:
    """Within a transaction, before `drop_some`: what may be half gone is not gone back to."""
    database.execute(f"UPDATE bundles SET position = 0 WHERE {_others('bundle', keep)}")  # noqa: S608
    database.execute(
        "DELETE FROM meta WHERE key = ? AND value IN "  # noqa: S608 - numbers alone
        f"(SELECT hash FROM bundles WHERE {_others('bundle', keep)})",
        [PREVIOUS],
    )


def drop_some(database: sqlite3.Connection, keep: Sequence[Known]) -> bool:
    """Drop, within a transaction, some of the vectors of all bundles but these; whether more is
    left.
    """
    for table, column, numbers in (
        ("item_vectors", "bundle", [each.number for each in keep]),
        ("llm_vectors", "encoder", [each.encoder for each in keep]),
    ):
        others = {
            number
            for (number,) in database.execute(f"SELECT {column} FROM bundles")  # noqa: S608
        }.difference(numbers)
        for number in others:
            rows = [
                row
                for (row,) in database.execute(
                    f"SELECT DISTINCT row FROM {table} WHERE {column} = ? LIMIT ?",  # noqa: S608
                    [number, AT_ONCE],
                )
            ]
            if rows:
                database.executemany(
                    f"DELETE FROM {table} WHERE {column} = ? AND row = ?",  # noqa: S608
                    [(number, row) for row in rows],
                )
                return True
    numbers = [each.number for each in keep]
    database.execute(f"DELETE FROM bundles WHERE {_others('bundle', numbers)}")  # noqa: S608
    return False


def _others(column: str, numbers: Collection[int]) -> str:
    return f"{column} NOT IN ({', '.join(str(int(number)) for number in numbers)})"


def seeing(path: Path, known: Known) -> sqlite3.Connection:
    """A connection that reads the catalogue as if a bundle were active, as far as it was told.

    At one moment, which is that of the first read. Items behind the bundle's position are not
    there, whether or not they have vectors of it.
    """
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
    )
    # What is temporary goes before what has the same name in the file. It takes no parameters.
    told = f"FROM main.items WHERE version <= {int(known.position)}"
    database.execute(f"CREATE TEMP VIEW items AS SELECT * {told}")
    database.execute(
        "CREATE TEMP VIEW vectors AS SELECT row, view, vector FROM item_vectors "  # noqa: S608
        f"WHERE bundle = {int(known.number)} AND row IN (SELECT row {told})"
    )
    database.execute("BEGIN")
    return database
