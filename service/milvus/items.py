"""Items as Milvus has them: by id, or in pages; and how far imports have come."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Collection, Generator, Iterable, Sequence

from models.item import Item
from service.errors import Invalid, Unsupported
from service.listing import Page
from service.milvus.collection import ATTRIBUTES, HIDDEN, ITEM, MOST_BYTES, NOTHING, has_field
from service.milvus.connection import TOGETHER, Connection, Row
from service.milvus.expressions import DIGITS, KEY, VERSION, among, key_of
from service.progress import Progress
from service.rows import Outcome, Stored

MOST_ROWS = 16_384  # of one answer of Milvus
SPARE = 1.2  # a window of keys has so many times the rows that are wanted, by and large
FIRST, SPACE = 8, 16**8  # digits of a key that windows are made of, and how many keys those tell
TAG_BYTES = 8
PROGRESS = ("line", "created", "changed", "unchanged", "finished", "error")


class MilvusItems:
    """The items of a collection.

    They are listed by a hash of their ids: Milvus answers rows in no order, but a window of keys
    can be asked for.

    Args:
        views: that the bundle has.
        lacks_words: why items cannot be found by words.
    """

    def __init__(
        self, connection: Connection, collection: str, views: Collection[str], lacks_words: str
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._views = views
        self._lacks_words = lacks_words
        self._fields = [KEY, ITEM, ATTRIBUTES, HIDDEN, VERSION, *map(has_field, views)]

    def get(self, item_id: str) -> Stored | None:
        """The item of an id."""
        return self.get_many([item_id])[0]

    def get_many(self, item_ids: Sequence[str]) -> list[Stored | None]:
        """The items of ids, in their order; None where there is no such item."""
        keys = [key_of(each) for each in item_ids]
        rows = self.rows_of(keys, self._fields)
        return [self._stored(rows[key]) if key in rows else None for key in keys]

    def rows_of(self, keys: Iterable[str], fields: Sequence[str]) -> dict[str, Row]:
        """Of those of some keys that there are, some fields, among them KEY."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Row] = {}
        for start in range(0, len(wanted), TOGETHER):
            some = among(wanted[start : start + TOGETHER])
            for row in self._connection.rows(self._collection, some, fields):
                found[str(row[KEY])] = row
        return found

    def page(self, limit: int, cursor: str | None = None, query: str | None = None) -> Page:
        """Items by a hash of their ids.

        Raises:
            Invalid: the cursor is of another catalogue.
            Unsupported: there is a query.
        """
        if query is not None:
            raise Unsupported(self._lacks_words)
        after = self._read(cursor) if cursor else ""
        rows = self._behind(after, limit + 1)
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(
            [self._stored(row) for row in rows],
            self._write(str(rows[-1][KEY])) if more else None,
        )

    def export(self, at_once: int) -> Generator[Sequence[Stored], None, None]:
        """All items, each as it is when it is asked for."""
        after = ""
        while rows := self._behind(after, at_once)[:at_once]:
            yield [self._stored(row) for row in rows]
            after = str(rows[-1][KEY])

    def _behind(self, after: str, wanted: int) -> list[Row]:
        """The first rows behind a key, by key: as many as are wanted, or all; and maybe more."""
        count = max(1, self._connection.count(self._collection, ""))
        width = max(1, int(SPACE * SPARE * wanted / count))
        start = int(after[:FIRST], 16) if after else 0
        rows: list[Row] = []
        while len(rows) < wanted and start < SPACE:
            end = min(start + width, SPACE)
            window = f'{KEY} > "{after}"'
            if end < SPACE:
                window += f' and {KEY} < "{end:0{FIRST}x}"'
            found = self._connection.rows(self._collection, window, self._fields, limit=MOST_ROWS)
            if len(found) == MOST_ROWS and width > 1:
                width = max(1, width // 4)
                continue
            rows += sorted(found, key=lambda row: str(row[KEY]))
            start = end
            after = max(after, f"{end - 1:0{FIRST}x}".ljust(DIGITS, "f"))
        return rows

    def _stored(self, row: Row) -> Stored:
        return Stored(
            Item(item_id=row[ITEM], attributes=json.loads(row[ATTRIBUTES])),
            bool(row[HIDDEN]),
            int(row[VERSION]),
            tuple(view for view in self._views if row[has_field(view)]),
        )

    def _write(self, key: str) -> str:
        return base64.urlsafe_b64encode(bytes.fromhex(key) + self._tag(key)).decode()

    def _read(self, cursor: str) -> str:
        try:
            told = base64.b64decode(cursor, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            told = b""
        key = told[: DIGITS // 2].hex()
        if len(key) != DIGITS or told[DIGITS // 2 :] != self._tag(key):
            raise Invalid.field(
                "cursor", "is none that this catalogue gave; ask without it to begin anew", cursor
            )
        return key

    def _tag(self, key: str) -> bytes:
        """Of what a cursor belongs to; no secret, only hard to hit by mistake."""
        return hashlib.sha256(f"{self._collection} {key}".encode()).digest()[:TAG_BYTES]


class MilvusImports:
    """The imports into a catalogue, in a collection of their own."""

    def __init__(self, connection: Connection, collection: str) -> None:
        self._connection = connection
        self._collection = collection

    def progress(self, import_id: str) -> Progress | None:
        """How far an import has come; None where it is not known."""
        rows = self._connection.rows(self._collection, among([import_id]), PROGRESS)
        if not rows:
            return None
        line, created, changed, unchanged, finished, error = (rows[0][name] for name in PROGRESS)
        return Progress(line, created, changed, unchanged, bool(finished), error or None)

    def begin(self, import_id: str) -> Progress:
        """Remember an import, and how far it came before; what stopped it then is forgotten."""
        return self._change(import_id, lambda told: told._replace(finished=False, error=None))

    def advance(self, import_id: str, line: int, outcomes: Sequence[Outcome]) -> None:
        """Note the last line that is durable, once it is."""
        created = sum(each.created for each in outcomes)
        changed = sum(each.changed for each in outcomes)
        self._change(
            import_id,
            lambda told: told._replace(
                line=line,
                created=told.created + created,
                changed=told.changed + changed - created,
                unchanged=told.unchanged + len(outcomes) - changed,
            ),
        )

    def end(self, import_id: str, error: str | None = None) -> Progress:
        """Note that an import was read to its end, or what is wrong with its next line."""
        return self._change(
            import_id, lambda told: told._replace(finished=error is None, error=error)
        )

    def _change(self, import_id: str, change: Callable[[Progress], Progress]) -> Progress:
        told = change(self.progress(import_id) or Progress())
        error = (told.error or "").encode()[: MOST_BYTES // 2].decode(errors="ignore")
        row = {KEY: import_id, **told._asdict(), "error": error, "nothing": NOTHING}
        self._connection.upsert(self._collection, [row])
        return told
