"""Items as they are stored: by id, all, or in pages that stay right while items come and go."""

import base64
import binascii
import hashlib
import json
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from models.item import Item
from service.errors import Invalid
from service.rows import Stored

# Of each item what `stored_in` reads, and its row.
SOME = (
    "SELECT item_id, attributes, hidden, version, row FROM items "
    "WHERE item_id IN (SELECT value FROM json_each(?))"
)
ALL = "SELECT item_id, attributes, hidden, version, row FROM items ORDER BY row"
LISTED = (
    "SELECT item_id, attributes, hidden, version, row FROM items WHERE row > ? ORDER BY row LIMIT ?"
)
# The words of a row stand under its number, and FTS5 gives them in the order of these.
FOUND = (
    "SELECT item_id, attributes, hidden, version, row FROM words "
    "CROSS JOIN items ON row = words.rowid "
    "WHERE words MATCH ? AND words.rowid > ? ORDER BY words.rowid LIMIT ?"
)
ROW_BYTES = 8
TAG_BYTES = 8


class Page(NamedTuple):
    """Items in the order in which they came to the catalogue.

    Attributes:
        cursor: asks for what follows; None at the end.
    """

    items: list[Stored]
    cursor: str | None


class Listing:
    """The items of a catalogue as they were committed last, read while others write.

    On connections of its own, so that nobody waits for who writes, nor the other way round. Methods
    block and may be called from any thread.

    Args:
        path: of the database, which is open elsewhere for writing.
        catalogue_id: that cursors belong to.
    """

    def __init__(self, path: Path, catalogue_id: str) -> None:
        self._path = path
        self._catalogue_id = catalogue_id
        self._lock = threading.Lock()
        self._database = self._connect()

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Let the database go."""
        with self._lock:
            self._database.close()

    def get(self, item_id: str) -> Stored | None:
        """The item of an id."""
        return self.get_many([item_id])[0]

    def get_many(self, item_ids: Sequence[str]) -> list[Stored | None]:
        """The items of ids, in their order; None where there is no such item."""
        with self._lock:
            rows = self._database.execute(SOME, [json.dumps(list(item_ids))]).fetchall()
        found = {row[0]: stored_in(row) for row in rows}
        return [found.get(item_id) for item_id in item_ids]

    def page(self, limit: int, cursor: str | None = None, query: str | None = None) -> Page:
        """Items in the order in which they came, from a cursor on.

        What comes or goes meanwhile moves nothing: each item that is there all the time is
        listed once, and one that is new comes last.

        Args:
            query: words; items are listed whose id or attributes have all of them, each as the
                beginning of a word, whatever the case and the accents.

        Raises:
            Invalid: the cursor is of another catalogue or other words, or there is no word.
        """
        asked = query or ""
        after = read_cursor(cursor, self._catalogue_id, asked) if cursor else 0
        select, values = LISTED, (after, limit + 1)
        found: tuple[str, ...] = ()
        if query is not None:
            select, found = FOUND, (match_of(query),)
        with self._lock:
            rows = self._database.execute(select, [*found, *values]).fetchall()
        more = len(rows) > limit
        rows = rows[:limit]
        after = rows[-1][-1] if rows else after
        return Page(
            [stored_in(row) for row in rows],
            write_cursor(self._catalogue_id, asked, after) if more else None,
        )

    def export(self, at_once: int) -> Generator[Sequence[Stored], None, None]:
        """All items as they are when the first are asked for, in the order in which they came.

        May be asked from another thread each time, one at a time.

        Args:
            at_once: how many come together.
        """
        with closing(self._connect()) as database:
            database.execute("BEGIN")  # one transaction sees one moment
            rows = database.execute(ALL)
            while found := rows.fetchmany(at_once):
                yield [stored_in(row) for row in found]


def stored_in(row: Sequence[Any]) -> Stored:
    """The item in a row of SOME, ALL, LISTED or FOUND."""
    item_id, attributes, hidden, version = row[:4]
    return Stored(Item(item_id=item_id, attributes=json.loads(attributes)), bool(hidden), version)


def write_cursor(catalogue_id: str, query: str, row: int) -> str:
    """What says: after this row, of this catalogue's items that hold these words."""
    told = row.to_bytes(ROW_BYTES, "big") + _tag(catalogue_id, query, row)
    return base64.urlsafe_b64encode(told).decode()


def read_cursor(cursor: str, catalogue_id: str, query: str) -> int:
    """The row that a cursor says.

    Raises:
        Invalid: it is no cursor, or one of another catalogue or of other words.
    """
    try:
        told = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        told = b""
    row = int.from_bytes(told[:ROW_BYTES], "big")
    if told[ROW_BYTES:] != _tag(catalogue_id, query, row):
        raise Invalid.field(
            "cursor",
            "is none that this catalogue gave for this q; ask without it to begin anew",
            cursor,
        )
    return row


def _tag(catalogue_id: str, query: str, row: int) -> bytes:
    """Of what a cursor belongs to; no secret, only hard to hit by mistake."""
    told = f"{catalogue_id} {row} {query}".encode()
    return hashlib.sha256(told).digest()[:TAG_BYTES]


def match_of(query: str) -> str:
    """FTS5's expression for: all these words, each of them the beginning of a word.

    Raises:
        Invalid: there is no word in it.
    """
    # Quoted, since FTS5 has operators; a word of signs alone would match nothing, and with it all.
    words = [word for word in query.replace("\x00", " ").split() if any(map(str.isalnum, word))]
    if not words:
        raise Invalid.field("q", "holds no letter and no digit", query)
    return " ".join('"' + word.replace('"', '""') + '"*' for word in words)
