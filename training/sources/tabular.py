"""Your own data: a file of items and a file of interactions.

Items: JSONL (`{"item_id": …, "attributes": {…}}`; what else a line says is not read), or CSV or
Parquet with a column for the id and a column per attribute (Parquet may hold lists).
Interactions: CSV or Parquet with columns for user, item and, if there is one, time.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.item import MAX_ATTRIBUTES, InvalidItem, Item, is_missing, read_items
from training import JobError
from training.sources import Events, Source, events_of, item_of
from training.sources.tables import Table, read_table
from training.sources.values import id_of, time_of

log = logging.getLogger(__name__)

TIME = "timestamp"


class Columns(BaseModel):
    """What the columns of CSV and Parquet files are called, and what is in them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field("item_id", description="tabular: of the file of items, its id")
    user: str = Field("user_id", description="tabular: of interactions, who")
    item: str = Field("item_id", description="tabular: of interactions, the id of what was used")
    time: str | None = Field(
        None, description=f"tabular: of interactions, when; None: `{TIME}`, where there is one"
    )
    time_format: str | None = Field(
        None,
        description="tabular: as in `%d.%m.%Y %H:%M`; None: seconds, or dates like 2024-03-09",
    )
    lists: dict[str, str] = Field(
        default_factory=dict,
        description="tabular: attributes that are lists, and what separates their parts",
    )
    numbers: tuple[str, ...] = Field(
        (), description="tabular: attributes that are numbers; all others of a CSV are text"
    )

    @field_validator("lists")
    @classmethod
    def _separators_are_some(cls, value: dict[str, str]) -> dict[str, str]:
        for name, separator in value.items():
            if not separator:
                raise ValueError(f'{name} needs what separates its parts, as in "|"')
        return value

    @field_validator("time_format")
    @classmethod
    def _format_reads_what_it_writes(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                datetime.strptime(datetime(2024, 3, 9, tzinfo=UTC).strftime(value), value)
            except (ValueError, re.error) as error:
                raise ValueError(
                    f"{value!r} is no form of dates ({error}); one is %d.%m.%Y %H:%M"
                ) from None
        return value

    @model_validator(mode="after")
    def _columns_are_several(self) -> Self:
        uses: dict[str, str] = {}
        for use, name in (("user", self.user), ("item", self.item), ("time", self.time or TIME)):
            if name in uses:
                raise ValueError(f"{uses[name]} and {use} are both {name}; name a column for each")
            uses[name] = use
        for name in (*self.lists, *self.numbers):
            if name == self.id:
                raise ValueError(f"{name} is the id, which is neither in lists nor in numbers")
        for name in self.lists:
            if name in self.numbers:
                raise ValueError(f"{name} is in lists and in numbers; take it out of one")
        return self


def load(
    folder: Path,
    items: str,
    interactions: str,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Source:
    """Items and interactions of two files in a folder.

    Items of a table that say nothing are left out, and counted. Without times the order of the
    file is the order in time.

    Args:
        delimiter, encoding: of CSV files; see read_table.

    Raises:
        JobError: a file is missing, empty or of an unknown kind, or a line is wrong.
    """
    blank = 0
    if Path(items).suffix == ".jsonl":
        found = list(_objects(folder / items))
    else:
        found, blank = _items(read_table(folder / items, delimiter, encoding), columns)
    if not found:
        raise JobError(f"{items} holds no item" + (" that says anything" if blank else ""))
    events = _events(read_table(folder / interactions, delimiter, encoding), columns)
    if not events.users:
        raise JobError(f"{interactions} holds no interaction")
    return Source(found, events, blank=blank)


def _objects(path: Path) -> Iterator[Item]:
    try:
        yield from read_items(path, ignore_other_fields=True)
    except (FileNotFoundError, IsADirectoryError):
        raise JobError(f"there is no file {path}") from None
    except InvalidItem as error:
        raise JobError(str(error)) from None


def _items(table: Table, columns: Columns) -> tuple[list[Item], int]:
    """The items of a table, and how many lines say nothing but an id."""
    table.require(columns.id, "data.columns.id")
    for setting, names in (("lists", columns.lists), ("numbers", columns.numbers)):
        for name in names:
            if name not in table.columns:
                raise JobError(
                    f"data.columns.{setting} names {name}, but {table.name} has only "
                    f"{', '.join(table.columns)}"
                )
    found: dict[str, Item] = {}
    stood: dict[str, str] = {}
    blank = 0
    for where, row in table.rows:
        item_id = _text(row[columns.id], where, columns.id)
        if item_id in stood:
            raise JobError(
                f"{where}: {columns.id}: {item_id!r} stands twice, first at {stood[item_id]}; an "
                "item is one line"
            )
        stood[item_id] = where
        values = {
            name: _value(name, value, where, columns)
            for name, value in row.items()
            if name != columns.id
        }
        told = {name: value for name, value in values.items() if not is_missing(value)}
        if len(told) > MAX_ATTRIBUTES:
            raise JobError(
                f"{where}: {len(told)} attributes; an item has at most {MAX_ATTRIBUTES}, so take "
                "columns out"
            )
        if told:
            found[item_id] = item_of(item_id, told, where)
        else:
            blank += 1
    return list(found.values()), blank


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _value(name: str, value: object, where: str, columns: Columns) -> object:
    """An attribute as what it is said to be; None where it says nothing."""
    if is_missing(value) or _is_nan(value):
        return None
    if name in columns.lists and isinstance(value, str):
        parts = (part.strip() for part in value.split(columns.lists[name]))
        return [part for part in parts if part]
    if name in columns.numbers and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise JobError(
                f"{where}: {name}: {value!r} is no number like 12.9; mend it, or take {name} out "
                "of data.columns.numbers to read it as text"
            )
        return number
    return value


def _text(value: object, where: str, column: str) -> str:
    text = "" if value is None or _is_nan(value) else str(value).strip()
    if not text:
        raise JobError(f"{where}: {column} is empty; fill it in, or take the line out")
    return id_of({column: text}, column, where)


def _events(table: Table, columns: Columns) -> Events:
    table.require(columns.user, "data.columns.user")
    table.require(columns.item, "data.columns.item")
    time = columns.time or TIME
    if columns.time:
        table.require(columns.time, "data.columns.time")
    timed = time in table.columns
    others = [name for name in table.columns if name not in {columns.user, columns.item}]
    if others and not timed:
        log.warning(
            "%s has no column %s, so the order of its lines is taken for the order in time; if one "
            "of %s tells the time, name it in data.columns.time",
            table.name, time, ", ".join(others),
        )  # fmt: skip

    def told() -> Iterator[tuple[str, str, float, str]]:
        clock: Callable[[str, str], float] | None = None
        seconds = 0.0
        for where, row in table.rows:
            if timed:
                moment = _text(row[time], where, time)
                clock = clock or _clock(moment, time, columns.time_format)
                seconds = clock(moment, where)
            yield (
                _text(row[columns.user], where, columns.user),
                _text(row[columns.item], where, columns.item),
                seconds,
                where,
            )

    events = events_of(told())
    return events if timed else replace(events, times=None)


def _clock(first: str, column: str, form: str | None) -> Callable[[str, str], float]:
    """What reads a time (its text, file:line) as seconds; the first one tells how all are told."""

    def number(text: str, where: str) -> float:
        try:
            return time_of(text, where, column)
        except JobError as error:
            like = "" if text == first else ", as the first one is"
            raise JobError(f"{error}{like}; mend it, or take the line out") from None

    def date(text: str, where: str) -> float:
        try:
            moment = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
        except ValueError:
            like = form or "2024-03-09 or 2024-03-09 18:30:00"
            raise JobError(
                f"{where}: {column}: {text!r} is no date like {like}; mend it, or tell the form "
                'of all, as in data.columns.time_format = "%d.%m.%Y %H:%M"'
            ) from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    return number if form is None and _is_number(first) else date


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
