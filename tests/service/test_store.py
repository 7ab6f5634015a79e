import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from service import store as module
from service.errors import StorageFull
from service.store import FILE, CatalogueError, Entry, WrongVector
from tests.service.catalogues import an_entry, an_item, open_store
from tests.service.running import ROOT

COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>
static void note(void) {
    int log = open(COUNT_FILE, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(log, "x", 1) < 0) {}
    close(log);
}
int fsync(int fd) { note(); return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { note(); return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


def writer(folder: Path, mode: str, start: int = 0, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.service.catalogues", str(folder), mode, str(start)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_new_store_holds_the_items_of_the_bundle(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    assert len(store.snapshot) == 5
    assert store.get("seed3") == an_item("seed3")
    assert store.snapshot.views("seed3").keys() == {"text", "id"}  # type: ignore[union-attr]
    store.close()


def test_what_was_put_and_deleted_is_so_after_opening_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.put([an_entry("a", value=2), an_entry("b")]) == [True, True]
    assert store.put([an_entry("a", "Kagemusha", value=3)]) == [False]
    assert store.delete("b")
    assert store.delete("seed1")
    assert not store.delete("seed1")
    store.close()

    again = open_store(tmp_path)

    assert len(again.snapshot) == 5
    assert again.get("a") == an_item("a", "Kagemusha")
    np.testing.assert_array_equal(again.snapshot.views("a")["text"], np.full(4, 3))  # type: ignore[index]
    assert again.get("b") is None
    assert again.get("seed1") is None
    again.close()


def test_the_same_attributes_again_change_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("a", value=1)])
    before = store.snapshot
    changes = store._database.total_changes

    created = store.put([an_entry("a", value=2)])

    assert created == [False]
    assert store.snapshot is before
    assert store._database.total_changes == changes
    store.close()


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.ones(5, np.float32), r"'text' has shape \(5,\), not \(4,\)"),
        (np.array([1, np.nan, 1, 1], np.float32), "'text' is not finite"),
    ],
)
def test_a_wrong_vector_is_refused_and_with_it_the_whole_put(
    tmp_path: Path, vector: np.ndarray, reason: str
) -> None:
    store = open_store(tmp_path)

    with pytest.raises(WrongVector, match=reason):
        store.put([an_entry("a"), Entry(an_item("b"), None, {"text": vector})])

    assert store.get("a") is None
    store.close()


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    with pytest.raises(CatalogueError, match="in use by another process"):
        open_store(tmp_path)

    store.close()
    open_store(tmp_path).close()


def test_the_catalogue_of_another_bundle_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()

    with pytest.raises(CatalogueError, match=r"bundle aaaaaaaaaaaa….*LLMEMB_CATALOGUE_DIR.*old"):
        open_store(tmp_path, bundle_hash="b" * 64)

    open_store(tmp_path).close()  # and was not touched


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version=2")
    database.close()

    with pytest.raises(CatalogueError, match="has schema 2 and this version knows 1"):
        open_store(tmp_path)


@pytest.mark.parametrize("damage", ["garbage", "overwritten pages", "foreign", "short vector"])
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE
    if damage == "garbage":
        path.write_bytes(b"garbage " * 1000)
    elif damage == "foreign":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE other (x)")
        database.close()
    else:
        open_store(tmp_path).close()
        if damage == "short vector":
            with sqlite3.connect(path) as database:
                database.execute("UPDATE vectors SET vector = x'00000000'")
            database.close()
        else:
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(b"\xa5" * (size - 4096))

    with pytest.raises(CatalogueError, match="is damaged|is no catalogue"):
        open_store(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(CatalogueError, match="cannot be written"):
        open_store(tmp_path / "file" / "catalogue")


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count={pages}")
    before = store.snapshot

    with pytest.raises(StorageFull):
        store.put([an_entry(f"i{n}", "x" * 1000) for n in range(50)])

    assert store.snapshot is before
    assert store.get("i0") is None
    store._database.execute("PRAGMA max_page_count=100000")
    assert store.put([an_entry("i0")]) == [True]
    store.close()


def test_seeding_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = module._insert
    seen = []

    def killed(*arguments: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        insert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_insert", killed)
    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path)
    monkeypatch.undo()

    store = open_store(tmp_path)

    assert len(store.snapshot) == 5
    store.close()


def test_no_acknowledged_change_is_lost_by_sigkill(tmp_path: Path) -> None:
    chance = random.Random(0)
    acknowledged = -1
    for _ in range(6):
        process = writer(tmp_path, "kill", acknowledged + 1)
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        lines = process.stdout.read().split("\n")[:-1]  # the last may be cut
        process.wait()
        process.stdout.close()
        acknowledged = int(lines[-1]) if lines else acknowledged

        store = open_store(tmp_path)
        for number in range(acknowledged + 1):
            deleted = number % 3 == 2 and number < acknowledged
            # The one put that was under way when the process died may be there or not.
            assert (f"i{number}" in store.snapshot) == (not deleted) or number == acknowledged
        store.close()

    assert acknowledged > 10


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to count fsync with")
def test_every_commit_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    counts = {}
    for mode in ("synced", "unsynced"):
        count, source = tmp_path / f"{mode}.count", tmp_path / "counter.c"
        library = tmp_path / f"{mode}.so"
        source.write_text(COUNTER)
        macro = f'-DCOUNT_FILE="{count}"'
        subprocess.run(["cc", "-shared", "-fPIC", macro, "-o", library, source], check=True)
        process = writer(tmp_path / mode, mode, LD_PRELOAD=str(library))
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        # Seeding is synced in both modes, and is over: the writer waits for nobody, so count
        # what all of it did and subtract what opening alone does.
        process.stdout.read()
        assert process.wait() == 0
        process.stdout.close()
        counts[mode] = count.stat().st_size

    # 20 puts and 6 deletes that find something: a commit each.
    assert counts["synced"] - counts["unsynced"] >= 26
    assert counts["unsynced"] < 26  # the control: opening and seeding, and no commit after
