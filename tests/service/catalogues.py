"""A stand-in for Bundle that needs no torch, for tests of the store alone.

Run as `python -m tests.service.catalogues FOLDER MODE START`, it is a process that opens a store
and puts items for ever, writing each number to stdout once it is acknowledged.
"""

import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from models.item import Catalogue, Item
from service.rows import Entry
from service.store import CatalogueStore

TOGETHER = 20  # items of a batch, lines of a chunk
WIDTHS = {"text": 4, "id": 2}


@dataclass
class FakeBundle:
    bundle_hash: str = "a" * 64
    count: int = 5
    views: dict[str, Any] = field(
        default_factory=lambda: {n: SimpleNamespace(width=w) for n, w in WIDTHS.items()}
    )
    manifest: Any = field(default_factory=lambda: SimpleNamespace(llm_dim=3))
    encoder_hash: str = "e" * 64

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(an_item(f"seed{n}") for n in range(self.count))

    @property
    def llm_vectors(self) -> np.ndarray:
        return np.ones((self.count, 3), np.float32)

    def training_views(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        present = np.ones(self.count, bool)
        return {n: (np.ones((self.count, w), np.float32), present) for n, w in WIDTHS.items()}


def an_item(item_id: str, title: str = "Ran") -> Item:
    return Item(item_id=item_id, attributes={"title": title})


def an_entry(item_id: str, title: str = "Ran", value: float = 1.0) -> Entry:
    return Entry(
        an_item(item_id, title),
        np.full(3, value, np.float32),
        {"text": np.full(4, value, np.float32)},
    )


def open_store(
    folder: Path, filterable: frozenset[str] | None = None, **fields: object
) -> CatalogueStore:
    return CatalogueStore.open(folder, FakeBundle(**fields), filterable)  # type: ignore[arg-type]


def main() -> None:
    folder, mode, start = sys.argv[1:]
    store = open_store(Path(folder), count=200 if mode == "seed" else 5)
    if mode == "unsynced":
        database: sqlite3.Connection = store._database
        database.execute("PRAGMA synchronous=OFF")
    sys.stdout.write("open\n")
    sys.stdout.flush()
    count = 20 if mode in {"synced", "unsynced"} else 1_000_000
    if mode == "import":
        store.imports.begin("one")
    for number in range(int(start), int(start) + count):
        if mode == "batch":
            store.put([an_entry(f"i{number}-{part}") for part in range(TOGETHER)])
        elif mode == "import":
            lines = range(TOGETHER * number, TOGETHER * (number + 1))
            store.put([an_entry(f"i{line}") for line in lines], progress=("one", lines.stop))
        else:
            store.put([an_entry(f"i{number}")])
            if number % 3 == 0:
                store.delete(f"i{number - 1}")
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
    # No tidy end: closing would checkpoint, and so sync, whatever the mode.
    import os

    os._exit(0)


if __name__ == "__main__":
    main()
