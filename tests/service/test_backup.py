"""A backup is the whole catalogue of one moment, made beside whoever writes to it."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.backup import back_up, restore
from service.schema import FILE, SCHEMA, CatalogueError
from tests.service.catalogues import an_entry, open_store
from tests.service.running import ROOT, Client, free_port, in_a_process


def command(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def everything(folder: Path) -> list[object]:
    """All that stands in the tables, FTS5's own among them."""
    database = sqlite3.connect(folder / FILE)
    names = [
        name
        for (name,) in database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'words' ORDER BY name"
        )
    ]
    rows = [(name, database.execute(f"SELECT * FROM {name}").fetchall()) for name in names]
    database.close()
    return list(rows)


def items_of(folder: Path) -> list[object]:
    """As `everything`, but for the number of changes, which a restore moves on."""
    return [(name, rows) for name, rows in everything(folder) if name != "meta"]  # type: ignore[misc]


def test_what_is_restored_is_what_was_backed_up(tmp_path: Path) -> None:
    store = open_store(tmp_path / "old")
    store.put([an_entry("a", value=2), an_entry("b")])
    store.hide("b", True)
    store.delete("seed0")
    cursor = store.items.page(2).cursor
    count = back_up(tmp_path / "old", tmp_path / "backup")
    store.put([an_entry("too late")])
    store.close()

    assert restore(tmp_path / "backup", tmp_path / "new") == count == 6

    again = open_store(tmp_path / "new")
    assert again.items.get("too late") is None
    assert (again.stats.items, again.stats.hidden) == (6, 1)
    assert [each.item.item_id for each in again.items.page(9, query="ran").items][-2:] == ["a", "b"]
    assert again.items.page(2, cursor).items  # cursors go on
    again.close()
    (tmp_path / "copy").mkdir()
    shutil.copyfile(tmp_path / "backup", tmp_path / "copy" / FILE)
    assert items_of(tmp_path / "copy") == items_of(tmp_path / "new")


def test_a_restored_catalogue_gives_no_version_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "old")
    back_up(tmp_path / "old", tmp_path / "backup")
    (lost,) = store.put([an_entry("a", "lost with the disk")])
    store.close()

    restore(tmp_path / "backup", tmp_path / "new")

    again = open_store(tmp_path / "new")
    (other,) = again.put([an_entry("a", "another")])
    again.close()
    assert other.version is not None
    assert lost.version is not None
    assert other.version > lost.version


def test_a_backup_of_a_catalogue_at_rest_is_the_same_to_the_row(tmp_path: Path) -> None:
    open_store(tmp_path / "old").close()

    back_up(tmp_path / "old", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")

    assert items_of(tmp_path / "old") == items_of(tmp_path / "new")
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == [*("catalogue.lock", FILE)]


def test_a_backup_holds_whole_writes_alone_while_there_are_many(tmp_path: Path) -> None:
    store = open_store(tmp_path / "live")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            store.put([an_entry(f"left{number}"), an_entry(f"right{number}")])
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        counts = [back_up(tmp_path / "live", tmp_path / f"backup{n}") for n in range(5)]
    finally:
        stop.set()
        thread.join()
    store.close()

    assert counts == sorted(counts)
    for number, count in enumerate(counts):
        restore(tmp_path / f"backup{number}", tmp_path / f"new{number}")
        again = open_store(tmp_path / f"new{number}")
        ids = {each.item.item_id for each in again.items.page(100_000).items}
        assert len(ids) == count == len(again.snapshot)
        assert {i[4:] for i in ids if i.startswith("left")} == {
            i[5:] for i in ids if i.startswith("right")
        }
        again.close()


def test_a_running_service_is_backed_up_and_serves_on(tiny_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    live = tmp_path / "live"
    with Client(port) as client, in_a_process(tiny_bundle, live, port) as process:
        client.wait_until_ready(process)
        client.put("/items/new", json={"attributes": {"title": "Ran"}})
        done = command("backup", tmp_path / "backup", LLMEMB_CATALOGUE_DIR=str(live))
        later = client.put("/items/later", json={"attributes": {"title": "Ran"}})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/backup holds the 13 items of {live}\n"
    assert later.status_code == 201

    restored = command("restore", tmp_path / "backup", "--catalogue", tmp_path / "new")
    assert (restored.returncode, restored.stderr) == (0, "")

    with Client(port) as client, in_a_process(tiny_bundle, tmp_path / "new", port) as process:
        client.wait_until_ready(process)
        assert client.get("/items/new").status_code == 200
        assert client.get("/items/later").status_code == 404
        assert "new" in dict(client.recommended(["1"], k=500))


@pytest.mark.parametrize(
    "damage", ["garbage", "empty", "foreign", "cut off", "overwritten", "newer", "nothing"]
)
def test_a_file_that_is_no_sound_backup_is_refused_and_nothing_is_left(
    tmp_path: Path, damage: str
) -> None:
    backup = tmp_path / "backup"
    open_store(tmp_path / "old", count=200).close()
    back_up(tmp_path / "old", backup)
    size = backup.stat().st_size
    if damage == "garbage":
        backup.write_bytes(b"garbage " * 1000)
    elif damage == "empty":
        backup.write_bytes(b"")
    elif damage == "cut off":
        os.truncate(backup, size // 2)
    elif damage == "overwritten":
        with backup.open("r+b") as file:
            file.seek(size // 2)
            file.write(b"\xa5" * 8192)
    elif damage == "nothing":
        backup.unlink()
    else:
        if damage == "foreign":
            backup.unlink()
        database = sqlite3.connect(backup)
        database.execute("CREATE TABLE other (x)")
        database.execute(f"PRAGMA user_version={1 if damage == 'foreign' else SCHEMA + 1}")
        database.close()

    done = command("restore", backup, "--catalogue", tmp_path / "new")

    assert done.returncode == 1
    assert done.stdout == ""
    assert str(backup) in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    left = tmp_path / "new"
    assert not left.exists() or [each.name for each in left.iterdir()] == ["catalogue.lock"]
    if damage != "newer":
        open_store(left).close()  # a new one can be made there


def test_nothing_is_restored_over_a_folder_that_holds_something(tmp_path: Path) -> None:
    open_store(tmp_path / "old").close()
    back_up(tmp_path / "old", tmp_path / "backup")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters").write_text("x")

    with pytest.raises(CatalogueError, match="old is not empty"):
        restore(tmp_path / "backup", tmp_path / "old")
    with pytest.raises(CatalogueError, match="mine is not empty, it has 'letters'"):
        restore(tmp_path / "backup", tmp_path / "mine")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["letters"]


def test_a_restore_that_was_stopped_can_be_repeated(tmp_path: Path) -> None:
    open_store(tmp_path / "old").close()
    back_up(tmp_path / "old", tmp_path / "backup")
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "backup", tmp_path / "new" / f"{FILE}.partial")
    (tmp_path / "new" / "catalogue.lock").touch()

    restore(tmp_path / "backup", tmp_path / "new")

    assert items_of(tmp_path / "new") == items_of(tmp_path / "old")


@pytest.mark.parametrize("target", ["there", "no/such/folder"])
def test_a_backup_overwrites_nothing_and_names_what_is_missing(tmp_path: Path, target: str) -> None:
    open_store(tmp_path / "old").close()
    (tmp_path / "there").write_text("precious")

    with pytest.raises(CatalogueError, match="is there already|does not exist"):
        back_up(tmp_path / "old", tmp_path / target)

    assert (tmp_path / "there").read_text() == "precious"


def test_a_backup_of_a_folder_without_a_catalogue_makes_none(tmp_path: Path) -> None:
    done = command("--catalogue", tmp_path / "empty", "backup", tmp_path / "backup")

    assert done.returncode == 1
    assert done.stderr == (f"{tmp_path}/empty holds no catalogue; name its folder by --catalogue\n")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_catalogue_gives_no_backup(tmp_path: Path) -> None:
    open_store(tmp_path / "old", count=200).close()
    with (tmp_path / "old" / FILE).open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xa5" * 8192)

    with pytest.raises(CatalogueError, match="damaged|cannot be backed up"):
        back_up(tmp_path / "old", tmp_path / "backup")

    assert [each.name for each in tmp_path.iterdir()] == ["old"]


def test_a_page_that_is_damaged_is_found_when_the_catalogue_is_opened(tmp_path: Path) -> None:
    open_store(tmp_path, count=200).close()
    database = sqlite3.connect(tmp_path / FILE)
    (root,) = database.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_items_1'"
    ).fetchone()
    database.close()
    with (tmp_path / FILE).open("r+b") as file:  # which nothing reads at start
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)

    with pytest.raises(CatalogueError, match="is damaged"):
        open_store(tmp_path)
