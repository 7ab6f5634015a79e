"""Data formats. A source reads a folder into items and interactions, and knows nothing else."""

import ast
import csv
import gzip
import html
import json
import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.item import InvalidItem, Item, is_missing, parse_item
from training.recipe import JobError

GZIP = b"\x1f\x8b"
# A `<` that no letter follows is text ("< 3 kg"); a tag that is cut off counts by its `=`.
TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)|</?[a-z][^<>]*>|<[a-z]+\s[^<>]*=[^<>]*\Z",
    re.IGNORECASE | re.DOTALL,
)
SURROGATE = re.compile("[\ud800-\udfff]")
PRICE = re.compile(r"\$?\s*([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(\.[0-9]+)?")


@dataclass(frozen=True)
class Events:
    """Interactions in the source's order, as columns of the same length.

    `times` is None where the source has no time; `where` says where each stood (file:row).
    """

    users: list[str]
    items: list[str]
    times: list[float] | None
    where: list[str]

    def at(self, places: NDArray[np.int64]) -> "Events":
        """The interactions at these places alone, in the order of the places."""
        kept = places.tolist()
        return Events(
            [self.users[place] for place in kept],
            [self.items[place] for place in kept],
            None if self.times is None else [self.times[place] for place in kept],
            [self.where[place] for place in kept],
        )


@dataclass(frozen=True)
class Source:
    """What a data set says: its items, and who used which when.

    Attributes:
        repeats: interactions that were left out because the user had used the item before.
    """

    items: list[Item]
    events: Events
    repeats: int = 0


# --- files ---------------------------------------------------------------------------------------


def find_file(folder: Path, name: str, kind: str) -> str:
    """The name, or the name with .gz, whichever the folder holds.

    Raises:
        JobError: it holds neither; `kind` says of which data set they are.
    """
    for candidate in (name, f"{name}.gz"):
        if (folder / candidate).is_file():
            return candidate
    raise JobError(f"{folder} holds no {kind} data: neither {name} nor {name}.gz")


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[str, str]]:
    """Lines of a text file as (file:line, text); blank lines and byte order marks are skipped.

    Whether the file is gzip is told by its first bytes, not by its name.

    Raises:
        JobError: the file is missing, is not a whole gzip file, or a line is not in this encoding.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(GZIP)) == GZIP
            raw.seek(0)
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(lines, 1):
                text = line.decode(encoding).rstrip("\r\n")
                if text.strip():
                    yield f"{path.name}:{number}", text
    except FileNotFoundError:
        raise JobError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path.name}:{number}: {error}; fetch the file again") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise JobError(
            f"{path.name}:{number + 1}: not a whole gzip file: {error}; fetch it again"
        ) from None


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file with one in each line, JSON or a Python literal, as (file:line, fields).

    A literal is read as data: a name or a call in it is an error, and nothing is run.

    Raises:
        JobError: as read_lines, or a line is neither.
    """
    for where, line in read_lines(path):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            try:
                fields = ast.literal_eval(line)
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                fields = None
        if not isinstance(fields, dict):
            raise JobError(f"{where}: neither a JSON object nor a Python dict: {line[:80]!r}")
        yield where, fields


def read_rows(
    path: Path, separator: str, encoding: str = "utf-8-sig", columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a delimited file as (file:line, {column: text}); a byte order mark is skipped.

    Args:
        separator: a comma (a quoted CSV), or something else (never quoted; the file may be gzip).
        columns: names, for files without a header line.

    Raises:
        JobError: the file is missing, empty, not in this encoding, or a row has another number
            of columns.
    """
    if separator == ",":
        rows = _csv_rows(path, encoding)
    else:
        rows = ((where, line.split(separator)) for where, line in read_lines(path, encoding))
    names = list(columns) if columns else next(rows, ("", []))[1]
    if not names:
        raise JobError(f"{path.name} is empty")
    for where, row in rows:
        if not any(row):
            continue
        if len(row) != len(names):
            raise JobError(f"{where}: {len(row)} columns, not {len(names)} ({', '.join(names)})")
        yield where, dict(zip(names, row, strict=True))


def _csv_rows(path: Path, encoding: str) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding=encoding, newline="") as lines:
            for number, row in enumerate(csv.reader(lines, strict=True), 1):
                yield f"{path.name}:{number}", row
    except FileNotFoundError:
        raise JobError(f"there is no file {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise JobError(f"{path.name} cannot be read: {error}") from None


# --- values --------------------------------------------------------------------------------------


def field_of(fields: Mapping[str, Any], name: str, where: str) -> Any:  # noqa: ANN401 - JSON
    """The value of a field that must be there.

    Raises:
        JobError: it is not.
    """
    if name not in fields:
        raise JobError(f"{where}: there is no field {name}; found {', '.join(map(str, fields))}")
    return fields[name]


def id_of(fields: Mapping[str, Any], name: str, where: str) -> str:
    """The id in a field, as text.

    Raises:
        JobError: there is no such field, it is neither text nor a whole number, it is empty, or
            it holds a line break or half a surrogate pair.
    """
    value = field_of(fields, name, where)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text:
        raise JobError(f"{where}: {name}: {value!r} is no id")
    if "\n" in text or "\r" in text or SURROGATE.search(text):
        raise JobError(f"{where}: {name}: {text!r} holds a line break or half a surrogate pair")
    return text


def time_of(text: str, where: str, column: str = "timestamp") -> float:
    """A finite number of seconds, or a JobError that names the place."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not -1e15 < seconds < 1e15:
        raise JobError(f"{where}: {column}: {text!r} is not a finite number of seconds")
    return seconds


def date_of(fields: Mapping[str, Any], name: str, where: str) -> float:
    """Seconds since 1970 of `YYYY-MM-DD` or `YYYY-MM-DD HH:MM:SS` in a field, taken as UTC.

    Raises:
        JobError: there is no such field, or it is no such date.
    """
    text = field_of(fields, name, where)
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise JobError(
            f"{where}: {name}: {text!r} is no date like 2019-11-05 or 2019-11-05 09:05:58"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def clean_text(value: object) -> str:
    """Text without tags, entities (escaped twice, too) and runs of blanks; '' if it is no text."""
    if not isinstance(value, str):
        return ""
    text = html.unescape(html.unescape(value))
    return " ".join(SURROGATE.sub("", TAG.sub(" ", text)).split())


def clean_texts(value: object) -> list[str]:
    """The parts of a list, or one text, each cleaned; parts that say nothing are left out."""
    parts = value if isinstance(value, list) else [value]
    return [text for text in map(clean_text, parts) if text]


def price_of(value: object) -> float | None:
    """A price as a number: of 12.99, '12.99' and '$1,299.00'; None of anything else."""
    if isinstance(value, str) and (found := PRICE.fullmatch(value.strip())):
        value = float(found[1].replace(",", "") + (found[2] or ""))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


# --- items and interactions ----------------------------------------------------------------------


def item_of(item_id: str, attributes: dict[str, object], where: str) -> Item:
    """An Item, or a JobError that opens with file and line."""
    try:
        return parse_item({"item_id": item_id, "attributes": attributes}, where)
    except InvalidItem as error:
        raise JobError(str(error)) from None


def items_of(rows: Iterable[tuple[str, dict[str, object], str]]) -> list[Item]:
    """Items of (id, attributes, file:line).

    Attributes that say nothing are left out, as are items that have no others. Of several rows
    with one id the first with a title counts, or the first.

    Raises:
        JobError: a row is no Item.
    """
    found: dict[str, Item] = {}
    for item_id, attributes, where in rows:
        told = {name: value for name, value in attributes.items() if not is_missing(value)}
        before = found.get(item_id)
        if told and (not before or ("title" in told and "title" not in before.attributes)):
            found[item_id] = item_of(item_id, told, where)
    return list(found.values())


def events_of(rows: Iterable[tuple[str, str, float, str]]) -> Events:
    """Events of (user, item, seconds, file:line); each id is kept in memory once."""
    users: list[str] = []
    items: list[str] = []
    times: list[float] = []
    places: list[str] = []
    for user, item, time, where in rows:
        users.append(sys.intern(user))
        items.append(sys.intern(item))
        times.append(time)
        places.append(where)
    return Events(users, items, times, places)


def codes_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64: a number for each id, from 0 upwards in the order of their first appearance."""
    codes: dict[str, int] = {}
    return np.fromiter((codes.setdefault(name, len(codes)) for name in ids), np.int64, len(ids))


def first_of_each(events: Events) -> tuple[Events, int]:
    """Of each user and item the earliest interaction; of several at that time, the first.

    Returns:
        What is left, in its order, and how many were left out.
    """
    users, items = codes_of(events.users), codes_of(events.items)
    pairs = users * (items.max(initial=0) + 1) + items
    order = np.argsort(np.array(events.times or np.zeros(len(pairs))), kind="stable")
    _, first = np.unique(pairs[order], return_index=True)
    return events.at(np.sort(order[first])), len(pairs) - len(first)
