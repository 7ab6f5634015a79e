"""Your own data: a file of items and a file of interactions.

Items: JSONL (`{"item_id": …, "attributes": {…}}`; what else a line says is not read), or CSV
or Parquet with a column `item_id` and a column per attribute (Parquet may hold lists).
Interactions: CSV or Parquet with columns `user_id`, `item_id` and, if there is one, `timestamp`
in seconds; without it the order of the file is the order in time.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from models.item import InvalidItem, Item, read_items
from training import JobError
from training.sources import Events, Source, item_of
from training.sources.reading import read_rows
from training.sources.values import time_of


def load(folder: Path, items: str, interactions: str) -> Source:
    """Items and interactions of two files in a folder.

    Raises:
        JobError: a file is missing, empty or of an unknown kind, or a line is wrong.
    """
    found = list(_items(folder / items))
    if not found:
        raise JobError(f"{items} holds no item")
    events = _events(folder / interactions)
    if not events.users:
        raise JobError(f"{interactions} holds no interaction")
    return Source(found, events)


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".csv":
        yield from read_rows(path, ",")
    elif path.suffix == ".parquet":
        try:
            table = pyarrow.parquet.read_table(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise JobError(f"{path.name} cannot be read as Parquet: {error}") from None
        for number, row in enumerate(table.to_pylist(), 1):
            yield f"{path.name}:row {number}", row
    else:
        raise JobError(f"{path.name}: {path.suffix or 'no ending'} is neither .csv nor .parquet")


def _items(path: Path) -> Iterator[Item]:
    if path.suffix == ".jsonl":
        try:
            yield from read_items(path, ignore_other_fields=True)
        except FileNotFoundError:
            raise JobError(f"there is no file {path}") from None
        except InvalidItem as error:
            raise JobError(str(error)) from None
        return
    for where, row in _table(path):
        if "item_id" not in row:
            raise JobError(f"{where}: there is no column item_id")
        attributes = {name: value for name, value in row.items() if name != "item_id"}
        yield item_of(_text(row["item_id"], where, "item_id"), attributes, where)


def _text(value: object, where: str, column: str) -> str:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        raise JobError(f"{where}: {column} is empty")
    return str(value)


def _events(path: Path) -> Events:
    users: list[str] = []
    items: list[str] = []
    times: list[float] = []
    places: list[str] = []
    for where, row in _table(path):
        for column in ("user_id", "item_id"):
            if column not in row:
                raise JobError(f"{where}: there is no column {column}; found {', '.join(row)}")
        users.append(_text(row["user_id"], where, "user_id"))
        items.append(_text(row["item_id"], where, "item_id"))
        if "timestamp" in row:
            times.append(time_of(str(row["timestamp"]), where))
        places.append(where)
    return Events(users, items, times or None, places)
