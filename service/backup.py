"""One file of the whole catalogue, made while it is served, and a catalogue made of that file.

All by SQLite's backup API in one step: it reads within one transaction, so that the copy is the
catalogue at one moment, and a write-ahead log lets others write meanwhile.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

from service.opening import take
from service.schema import FILE, LOCK, CatalogueError, defect, is_full, require_known, sync

PARTIAL = ".partial"
Check = Literal["quick", "integrity"]
# Writes after the backup had versions that a restored catalogue must not give again, or a client
# that still holds one would overwrite what it has not seen.
BEYOND_ANY_WRITE = 2**32


def back_up(catalogue: Path, target: Path) -> int:
    """Write the catalogue of a folder to one file; how many items it has.

    Whoever has the folder open may go on reading and writing. The file stands there whole and
    synced, or not at all.

    Raises:
        CatalogueError: there is no catalogue, or something stands at the target, or it cannot be
            written, or what was copied is damaged.
    """
    source = catalogue / FILE
    if not source.is_file():
        raise CatalogueError(f"{catalogue} holds no catalogue; name its folder by --catalogue")
    if target.exists():
        raise CatalogueError(f"{target} is there already; name a file that is not")
    if not target.parent.is_dir():
        raise CatalogueError(f"the folder of {target} does not exist")
    # Not read-only: SQLite must be allowed to make the log's index where nobody has it open.
    return _copy(source, target, f"{source} cannot be backed up", "quick", mode="rw")


def restore(source: Path, catalogue: Path) -> int:
    """Make a catalogue of a backup, in a folder that is empty or new; how many items it has.

    Raises:
        CatalogueError: the file is no backup of a catalogue, or damaged, or of a newer version;
            or the folder is not empty, or in use, or cannot be written.
    """
    if not source.is_file():
        raise CatalogueError(f"there is no file {source}")
    _require_empty(catalogue)  # before anything is written to somebody's folder
    with take(catalogue):
        _require_empty(catalogue)
        return _copy(
            *(source, catalogue / FILE, f"{source} is no catalogue or is damaged", "integrity"),
            mode="ro",
            later_versions=True,
        )


def _require_empty(folder: Path) -> None:
    ours = {LOCK, FILE + PARTIAL}  # what a restore leaves that was stopped
    if folder.is_dir() and (others := {each.name for each in folder.iterdir()} - ours):
        raise CatalogueError(
            f"{folder} is not empty, it has {min(others)!a}; restore to a new folder"
        )


def _copy(
    source: Path,
    target: Path,
    failure: str,
    check: Check,
    mode: str,
    later_versions: bool = False,
) -> int:
    partial = target.with_name(target.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        with (
            closing(_opened(source, mode)) as stored,
            closing(sqlite3.connect(partial, isolation_level=None)) as copied,
        ):
            stored.backup(copied)
            # One file that says all, also where it may only be read.
            copied.execute("PRAGMA journal_mode=DELETE")
            count = _verified(copied, source, check)
            if later_versions:
                copied.execute(
                    "UPDATE meta SET value = value + ? WHERE key = 'changes'", [BEYOND_ANY_WRITE]
                )
        sync(partial)
        partial.rename(target)
        sync(target.parent)
    except sqlite3.Error as error:
        if is_full(error):
            raise CatalogueError(f"there is no room on the disk for {target}") from None
        raise CatalogueError(f"{failure} ({error})") from None
    except OSError as error:
        raise CatalogueError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)  # it is not there where all went well
    return count


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None
    )


def _verified(database: sqlite3.Connection, source: Path, check: Check) -> int:
    schema = database.execute("PRAGMA user_version").fetchone()[0]
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
    if schema == 0 or not {"meta", "items", "vectors"} <= tables:
        raise CatalogueError(f"{source} is no catalogue")
    require_known(schema, source)
    if wrong := defect(database, check):
        raise CatalogueError(f"{source} is damaged ({wrong}); use another backup")
    count: int = database.execute("SELECT count(*) FROM items").fetchone()[0]
    return count
