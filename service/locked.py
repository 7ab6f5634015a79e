"""The lock on a catalogue's folder: one process has it at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.schema import ELSEWHERE, LOCK, CatalogueError


def take(folder: Path) -> IO[bytes]:
    """A folder, made where it is not there, for this process alone until the file is closed.

    Raises:
        CatalogueError: another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("ab")
    except OSError as error:
        raise CatalogueError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise CatalogueError(
            f"{folder} is in use by another process; stop it or {ELSEWHERE}"
        ) from None
    return lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone, for as long as the block."""
    with take(folder):
        yield
