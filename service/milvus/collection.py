"""The collections of a catalogue: made and filled once, and found by an alias of their bundle."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from service.errors import Unreachable
from service.milvus.connection import Connection, Row
from service.milvus.expressions import (
    BOUNDS,
    DIGITS,
    KEY,
    MARKS,
    MOST_MARKS,
    VERSION,
    described,
    key_of,
)
from service.rows import Entry, Floats, written
from service.schema import CatalogueError

if TYPE_CHECKING:
    from models.bundle import Bundle

ITEM, ATTRIBUTES, HIDDEN, SHOWN, GIVEN = "item_id", "attributes", "hidden", "shown", "given"
MOST_BYTES = 65_535  # of a text
ID_BYTES = 512
SEEDED = 250  # rows that are written together
NOTHING = [0.0, 0.0]  # Milvus wants a vector in every collection
log = logging.getLogger(__name__)


def vector_field(view: str) -> str:
    """The field of a view's vectors; zeros where an item lacks it."""
    return f"vector_{view}"


def has_field(view: str) -> str:
    """The field that says whether an item has a view."""
    return f"has_{view}"


def alias_of(bundle_hash: str) -> str:
    """The name by which the items of a bundle are found."""
    return f"llmemb_{bundle_hash[:DIGITS]}"


def imports_of(collection: str) -> str:
    """The collection of the imports into another one."""
    return f"{collection}_imports"


def row_of(
    entry: Entry, widths: Mapping[str, int], version: int, hidden: bool, views: Mapping[str, Floats]
) -> Row:
    """An item as Milvus has it.

    Raises:
        Invalid: it has more values than an item may have.
    """
    marks, bounds = described(entry.item.attributes)
    row: Row = {
        KEY: key_of(entry.item.item_id),
        ITEM: entry.item.item_id,
        ATTRIBUTES: written(entry.item),
        MARKS: marks,
        BOUNDS: bounds,
        HIDDEN: hidden,
        SHOWN: bool(views) and not hidden,
        GIVEN: entry.given,
        VERSION: version,
    }
    for view, width in widths.items():
        row[has_field(view)] = view in views
        row[vector_field(view)] = views[view].tolist() if view in views else [0.0] * width
    return row


def open_collection(connection: Connection, bundle: "Bundle") -> str:
    """The collection of a bundle's items; one that is new is seeded with those of training.

    It is made and filled under a name that nobody knows, and then named by one alias. Of several
    processes that do so at once one is first, and the others take theirs back.

    Raises:
        CatalogueError: it is not as this bundle has its views.
        Unreachable: Milvus does not answer.
    """
    alias = alias_of(bundle.bundle_hash)
    widths = {name: view.width for name, view in bundle.views.items()}
    if (found := _named(connection, alias)) is None:
        mine = f"{alias[:20]}_{secrets.token_hex(4)}"
        _create(connection, mine, widths)
        for rows in _seeds(bundle, widths):
            connection.upsert(mine, rows)
        try:
            connection.call("create_alias", collection_name=mine, alias=alias)
        except Unreachable:
            if _named(connection, alias) is None:
                raise
        found = _named(connection, alias) or mine
        if found == mine:
            log.info("seeded the catalogue with %d items of the bundle", len(bundle.catalogue))
        else:
            for each in (mine, imports_of(mine)):
                connection.call("drop_collection", collection_name=each)
    _require(connection, found, widths)
    return found


def _named(connection: Connection, alias: str) -> str | None:
    """The collection that an alias names; None where there is no such alias."""
    known = connection.call("list_aliases", collection_name="")["aliases"]
    if alias not in known:
        return None
    return str(connection.call("describe_alias", alias=alias)["collection_name"])


def _seeds(bundle: "Bundle", widths: Mapping[str, int]) -> Iterator[list[Row]]:
    tables = bundle.training_views()
    rows: list[Row] = []
    for at, item in enumerate(bundle.catalogue):
        views = {name: table[at] for name, (table, present) in tables.items() if present[at]}
        entry = Entry(item, None, views)
        rows.append(row_of(entry, widths, at + 1, False, views))
        if len(rows) == SEEDED:
            yield rows
            rows = []
    if rows:
        yield rows


def _create(connection: Connection, name: str, widths: Mapping[str, int]) -> None:
    from pymilvus import DataType  # noqa: PLC0415 - comes with the extra

    items = connection.new_schema()
    items.add_field(KEY, DataType.VARCHAR, is_primary=True, max_length=DIGITS)
    items.add_field(ITEM, DataType.VARCHAR, max_length=ID_BYTES)
    items.add_field(ATTRIBUTES, DataType.VARCHAR, max_length=MOST_BYTES)
    items.add_field(
        MARKS,
        DataType.ARRAY,
        element_type=DataType.VARCHAR,
        max_capacity=MOST_MARKS,
        max_length=DIGITS,
    )
    items.add_field(BOUNDS, DataType.JSON)
    items.add_field(VERSION, DataType.INT64)
    for field in (HIDDEN, SHOWN, GIVEN, *map(has_field, widths)):
        items.add_field(field, DataType.BOOL)
    for view, width in widths.items():
        items.add_field(vector_field(view), DataType.FLOAT_VECTOR, dim=width)
    connection.create(name, items, map(vector_field, widths), [MARKS])
    imports = connection.new_schema()
    imports.add_field(KEY, DataType.VARCHAR, is_primary=True, max_length=128)
    for field in ("line", "created", "changed", "unchanged"):
        imports.add_field(field, DataType.INT64)
    imports.add_field("finished", DataType.BOOL)
    imports.add_field("error", DataType.VARCHAR, max_length=MOST_BYTES)
    imports.add_field("nothing", DataType.FLOAT_VECTOR, dim=len(NOTHING))
    connection.create(imports_of(name), imports, ["nothing"])


def _require(connection: Connection, name: str, widths: Mapping[str, int]) -> None:
    told: dict[str, Any] = connection.call("describe_collection", collection_name=name)
    found = {
        field["name"]: int(field["params"]["dim"])
        for field in told["fields"]
        if "dim" in field.get("params", {})
    }
    wanted = {vector_field(view): width for view, width in widths.items()}
    if found != wanted:
        raise CatalogueError(
            f"the collection {name} of Milvus at {connection.where} has other vectors ({found}) "
            f"than the bundle ({wanted}); drop its alias, or name another database in LLMEMB_STORE"
        )
    for each in (name, imports_of(name)):
        connection.call("load_collection", collection_name=each)
