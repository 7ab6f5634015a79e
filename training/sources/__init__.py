"""Data formats. A source reads a folder into items and interactions, and knows nothing else."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.item import InvalidItem, Item, parse_item
from training.recipe import JobError


@dataclass(frozen=True)
class Events:
    """Interactions in the source's order, as columns of the same length.

    `times` is None where the source has no time; `where` says where each stood (file:row).
    """

    users: list[str]
    items: list[str]
    times: list[float] | None
    where: list[str]


@dataclass(frozen=True)
class Source:
    """What a data set says: its items, and who used which when."""

    items: list[Item]
    events: Events


def item_of(item_id: str, attributes: dict[str, object], where: str) -> Item:
    """An Item, or a JobError that opens with file and line."""
    try:
        return parse_item({"item_id": item_id, "attributes": attributes}, where)
    except InvalidItem as error:
        raise JobError(str(error)) from None


def read_rows(
    path: Path, separator: str, encoding: str = "utf-8-sig", columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a delimited file as (file:line, {column: text}); a byte order mark is skipped.

    Args:
        separator: of one character (a quoted CSV), or longer, or a tab (never quoted).
        columns: names, for files without a header line.

    Raises:
        JobError: the file is missing, empty, not in this encoding, or a row has another number
            of columns.
    """
    try:
        with path.open(encoding=encoding, newline="") as lines:
            if separator == ",":
                rows: Iterator[list[str]] = csv.reader(lines, strict=True)
            else:
                rows = (line.rstrip("\r\n").split(separator) for line in lines)
            names = list(columns) if columns else next(rows, None)
            number = 0 if columns else 1
            if not names:
                raise JobError(f"{path.name} is empty")
            for row in rows:
                number += 1
                if not any(row):
                    continue
                if len(row) != len(names):
                    raise JobError(
                        f"{path.name}:{number}: {len(row)} columns, not {len(names)} "
                        f"({', '.join(names)})"
                    )
                yield f"{path.name}:{number}", dict(zip(names, row, strict=True))
    except FileNotFoundError:
        raise JobError(f"there is no file {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise JobError(f"{path.name} cannot be read: {error}") from None


def time_of(text: str, where: str, column: str = "timestamp") -> float:
    """A finite number of seconds, or a JobError that names the place."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not -1e15 < seconds < 1e15:
        raise JobError(f"{where}: {column}: {text!r} is not a finite number of seconds")
    return seconds
