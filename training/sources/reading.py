"""Files of published data sets as lines, objects and rows, each with the place where it stood."""

import ast
import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training import JobError

GZIP = b"\x1f\x8b"


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
