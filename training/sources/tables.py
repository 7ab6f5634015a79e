"""A table as people have it, row by row: CSV by any usual delimiter, or Parquet."""

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from training import JobError
from training.sources.reading import GZIP

DELIMITERS = ",;\t|"
TEXTS = (".csv", ".tsv", ".txt")
PACKED = {GZIP: "a gzip file: unpack it", b"PK\x03\x04": "a zip or Excel file: save it as CSV"}
ENCODINGS = {"utf-8": "", "cp1252": " (Excel in Western Europe)", "utf-16": ""}
EXCEL = re.compile(r"sep=(.)\s*")  # a first line by which Excel tells the delimiter
QUOTES = (
    'a value that holds the delimiter stands in quotes, and a quote in it is doubled: "5"" nail"'
)


class Table(NamedTuple):
    """The names of a table's columns, and its rows as (file:line, {column: value}).

    Values of a CSV are text without blanks around it; '' where a cell is empty. Lines count from
    1, the header's; of Parquet, rows do.
    """

    name: str
    columns: list[str]
    rows: Iterator[tuple[str, dict[str, Any]]]

    def require(self, column: str, setting: str) -> None:
        """Make sure that there is a column.

        Raises:
            JobError: there is none; says by which setting another one is named.
        """
        if column not in self.columns and len(self.columns) == 1:
            raise JobError(
                f"{self.name} has no column {column}, only {self.columns[0]}: if these are "
                "several, tell in data.delimiter what stands between them"
            )
        if column not in self.columns:
            raise JobError(
                f"{self.name} has no column {column}; it has {', '.join(self.columns)}: "
                f'name the right one, as in {setting} = "{self.columns[0]}"'
            )


def read_table(path: Path, delimiter: str | None = None, encoding: str = "utf-8") -> Table:
    """The table in a file; its rows are read as they are asked for.

    Args:
        delimiter: None: that of comma, semicolon, tab and bar which makes most columns of the
            header.
        encoding: of a CSV; a byte order mark is skipped.

    Raises:
        JobError: the file is missing, empty, packed, of an unknown kind, or not in this encoding;
            the header names a column twice, or not at all; a row has another number of columns.
    """
    if not path.is_file():
        raise JobError(f"there is no file {path}")
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path)
    if ending not in TEXTS:
        known = ", ".join(TEXTS)
        raise JobError(
            f"{path.name}: {path.suffix or 'no ending'} is none of {known} and .parquet; save it "
            "as CSV"
        )
    return _csv(path, delimiter, encoding)


def _parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise JobError(f"{path.name} cannot be read as Parquet: {error}") from None
    _check_names(table.column_names, path.name)
    rows = ((f"{path.name}:row {n}", row) for n, row in enumerate(table.to_pylist(), 1))
    return Table(path.name, table.column_names, rows)


def _csv(path: Path, delimiter: str | None, encoding: str) -> Table:
    with path.open("rb") as raw:
        start = raw.read(4)
    for mark, told in PACKED.items():
        if start.startswith(mark):
            raise JobError(f"{path.name} is no text but {told}")
    records = _records(path, delimiter, encoding)
    first = next(records, None)
    if first is None:
        raise JobError(f"{path.name} is empty; its first line names the columns")
    where, columns = first
    _check_names(columns, where)
    return Table(path.name, columns, _rows(records, columns))


def _check_names(columns: Sequence[str], where: str) -> None:
    if not columns:
        raise JobError(f"{where} has no columns")
    for place, column in enumerate(columns, 1):
        if not column:
            raise JobError(f"{where}: column {place} of {len(columns)} has no name; give it one")
        if columns.count(column) > 1:
            raise JobError(f"{where}: two columns are called {column}; rename one")


def _rows(
    records: Iterator[tuple[str, list[str]]], columns: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, cells in records:
        if len(cells) != len(columns):
            told = f"{len(cells)} columns, not {len(columns)} ({', '.join(columns)})"
            raise JobError(f"{where}: {told}; {QUOTES}")
        yield where, dict(zip(columns, cells, strict=True))


def _records(path: Path, delimiter: str | None, encoding: str) -> Iterator[tuple[str, list[str]]]:
    """Records of a CSV as (file:line, cells), the header first; those without text are skipped."""
    number = 1
    try:
        with path.open(encoding=_unmarked(encoding), newline="") as lines:
            head = lines.readline()
            while head and (told := EXCEL.fullmatch(head) or not head.strip()):
                if told is not True:
                    delimiter = delimiter or told[1]
                head, number = lines.readline(), number + 1
            mark = delimiter or _delimiter(head)
            reader = csv.reader(chain([head], lines), delimiter=mark, strict=True)
            before = number - 1
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield f"{path.name}:{number}", stripped
                number = before + reader.line_num + 1
    except UnicodeError:  # of UTF-16 without a byte order mark it is no UnicodeDecodeError
        raise _undecodable(path, encoding) from None
    except csv.Error as error:
        raise JobError(
            f"{path.name}:{number}: {error}; a quote that is opened in this line may not be "
            f"closed: {QUOTES}"
        ) from None


def _unmarked(encoding: str) -> str:
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _delimiter(head: str) -> str:
    """The one that makes most columns of a header; of several that do, the first."""
    try:
        columns = {mark: len(next(csv.reader([head], delimiter=mark))) for mark in DELIMITERS}
    except (csv.Error, StopIteration):
        return DELIMITERS[0]
    return max(DELIMITERS, key=lambda mark: columns[mark])


def _undecodable(path: Path, encoding: str) -> JobError:
    """Which line is not in this encoding; a file is read again for it."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number, told = 1, " is"  # unless one byte is at fault
    with path.open("rb") as lines:
        try:
            for line in lines:
                number += decoder.decode(line).count("\n")
        except UnicodeDecodeError as error:
            number += error.object[: error.start].decode(error.encoding).count("\n")
            told = f", line {number}: byte 0x{error.object[error.start]:02x} is"
        except UnicodeError:  # UTF-16 without a byte order mark
            pass
    others = " or ".join(
        f'"{name}"{by}'
        for name, by in ENCODINGS.items()
        if codecs.lookup(name) != codecs.lookup(encoding)
    )
    return JobError(
        f"{path.name}{told} not in {encoding}; save the file as UTF-8, or tell its encoding, as in "
        f"data.encoding = {others}"
    )
