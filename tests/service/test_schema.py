"""A catalogue of an older version becomes one of this version, whole or not at all."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from service import schema
from service.schema import FILE, CatalogueError
from tests.service.catalogues import an_entry, an_item, open_store

# As the version wrote it that knew schema 1.
VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    row INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL UNIQUE,
    attributes TEXT NOT NULL,
    llm_vector BLOB,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE TABLE vectors (
    row INTEGER NOT NULL REFERENCES items (row),
    view TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (row, view)
) WITHOUT ROWID;
"""


def write_version_1(folder: Path) -> None:
    """Two items, the second of row 7, as after deletions."""
    folder.mkdir(exist_ok=True)
    database = sqlite3.connect(folder / FILE)
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript(VERSION_1)
    for row, title in ((2, "Ran"), (7, "Ikiru")):
        database.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, 1, 1)",
            [row, f"old{row}", f'{{"title": "{title}"}}', np.ones(3, "<f4").tobytes()],
        )
        vector = np.full(4, row, "<f4").tobytes()
        database.execute("INSERT INTO vectors VALUES (?, 'text', ?)", [row, vector])
    meta = {"bundle_hash": "a" * 64, "seeded": "5"}
    database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    database.execute("PRAGMA user_version=1")
    database.commit()
    database.close()


def shape(folder: Path) -> tuple[object, ...]:
    database = sqlite3.connect(folder / FILE)
    names = [
        name
        for (name,) in database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        )
    ]
    columns = {
        name: database.execute("SELECT * FROM pragma_table_info(?)", [name]).fetchall()
        for name in names
    }
    version = database.execute("PRAGMA user_version").fetchone()
    meta = {key for (key,) in database.execute("SELECT key FROM meta")}
    database.close()
    return names, columns, version, meta


def test_a_catalogue_of_version_1_is_brought_up_and_loses_nothing(tmp_path: Path) -> None:
    write_version_1(tmp_path / "old")
    open_store(tmp_path / "new").close()

    store = open_store(tmp_path / "old")

    assert [each and each.item for each in store.items.get_many(["old2", "old7"])] == [
        an_item("old2", "Ran"), an_item("old7", "Ikiru"),
    ]  # fmt: skip
    views = store.snapshot.views("old7")
    assert views
    np.testing.assert_array_equal(views["text"], np.full(4, 7))
    assert [each.item.item_id for each in store.items.page(10, query="iki").items] == ["old7"]
    assert store.stats.kinds == {("title", "string"): 2}
    (outcome,) = store.put([an_entry("new")])
    assert outcome.version == 8  # more than any row that there was
    assert store.put([an_entry("old2", "Kagemusha")])[0].version == 9
    assert store.items.page(10, query="ran").items[0].item.item_id == "new"
    store.close()
    assert shape(tmp_path / "old") == shape(tmp_path / "new")


def test_a_migration_that_is_stopped_changes_nothing_and_is_done_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version_1(tmp_path)
    before = shape(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "count_kinds", killed)
    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path)
    monkeypatch.undo()
    assert shape(tmp_path) == before

    store = open_store(tmp_path)

    assert len(store.snapshot) == 2
    store.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    newer = schema.SCHEMA + 1
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute(f"PRAGMA user_version={newer}")
    database.close()

    told = f"has schema {newer} and this version knows {schema.SCHEMA}"
    with pytest.raises(CatalogueError, match=told):
        open_store(tmp_path)
