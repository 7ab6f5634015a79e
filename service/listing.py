"""The catalogue in pages: cursors that stay right while items come and go, and words to find."""

import base64
import binascii
import hashlib
from typing import NamedTuple

from service.errors import Invalid
from service.rows import Stored

ROW_BYTES = 8
TAG_BYTES = 8


class Page(NamedTuple):
    """Items in the order in which they came to the catalogue.

    Attributes:
        cursor: asks for what follows; None at the end.
    """

    items: list[Stored]
    cursor: str | None


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
