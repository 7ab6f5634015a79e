"""The index on disk: a start believes it only as far as the database says the same."""

import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from service import generations, upkeep, vectors
from service import index as module
from service.schema import FILE, CatalogueError
from service.store import CatalogueStore
from tests.service.catalogues import an_entry, open_store

NOBODY = np.empty(0, np.int64)
USED = "is not used"
ANEW = "anew"


@pytest.fixture(params=["exact", "clustered"], autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done for a hundred thousand items is done for ten."""
    monkeypatch.setattr(upkeep, "KEEP_FROM", 10)
    monkeypatch.setattr("service.opening.KEEP_FROM", 10)
    monkeypatch.setattr(module, "MERGE_AT", 5)
    if request.param == "clustered":
        monkeypatch.setattr(vectors, "CLUSTER_FROM", 12)
        monkeypatch.setattr(vectors, "RECALL", {25: 1.1, 1000: 1.1})


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO):
        yield caplog


def filled(folder: Path) -> dict[str, float]:
    """A catalogue with a generation on disk; of its items what their vectors are made of."""
    values = {f"i{n:02}": float(n + 1) for n in range(30)}
    store = open_store(folder)
    store.put([an_entry(item_id, value=value) for item_id, value in values.items()])
    store.settle()
    store.close()
    assert numbers(folder)
    return values


def numbers(folder: Path) -> list[int]:
    return sorted(int(each.name) for each in (folder / generations.FOLDER).iterdir())


def held(store: CatalogueStore) -> dict[str, float]:
    """What the index answers of all items but those of the bundle."""
    snapshot = store.snapshot
    found = snapshot.search("text", np.ones((1, 4), np.float32), [100], [snapshot.allowed(NOBODY)])
    scored = zip(*found[0], strict=True)
    answered = {snapshot.item_id(int(place)): float(score) / 4 for place, score in scored}
    return {item_id: value for item_id, value in answered.items() if item_id.startswith("i")}


def test_a_start_reads_the_index_and_what_came_after_it(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    values = filled(tmp_path)
    store = open_store(tmp_path)
    store.put([an_entry("i05", "Changed", 50.0), an_entry("i90", value=90.0)])
    store.delete("i07")
    store.hide("i08", hidden=True)
    store.close()
    log.clear()

    again = open_store(tmp_path)

    assert ANEW not in log.text
    expected = {**values, "i05": 50.0, "i90": 90.0}
    hidden = expected.pop("i08")
    del expected["i07"]
    assert held(again) == expected
    views = again.snapshot.views("i08")
    assert views is not None
    assert float(views["text"][0]) == hidden
    again.close()


def test_a_damaged_index_is_told_and_the_one_before_it_is_read(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    store = open_store(tmp_path)
    store.put([an_entry(f"i{n}", value=float(n)) for n in range(100, 130)])
    store.settle()
    expected = held(store)
    store.close()
    old, new = numbers(tmp_path)
    path = tmp_path / generations.FOLDER / str(new) / "text.faiss"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)

    again = open_store(tmp_path)

    assert f"generation {new} of the index {USED}: text.faiss is damaged" in log.text
    assert f"generation {old} of the index {USED}" not in log.text
    assert held(again) == expected
    again.close()


@pytest.mark.parametrize(
    "harm", ["truncated", "a file lost", "no manifest", "of another catalogue"]
)
def test_an_index_that_cannot_be_read_is_made_anew_from_the_database(
    tmp_path: Path, log: pytest.LogCaptureFixture, harm: str
) -> None:
    values = filled(tmp_path)
    for number in numbers(tmp_path):
        folder = tmp_path / generations.FOLDER / str(number)
        if harm == "truncated":
            (folder / "places.npz").write_bytes((folder / "places.npz").read_bytes()[:50])
        elif harm == "a file lost":
            (folder / "id.faiss").unlink()
        elif harm == "no manifest":
            (folder / "manifest.json").unlink()
        else:
            manifest = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(manifest.replace('"bundle": "a', '"bundle": "b'))

    store = open_store(tmp_path)

    assert USED in log.text
    assert "making the index of 35 items anew" in log.text
    assert held(store) == values
    store.settle()
    assert numbers(tmp_path)  # and is on disk again
    store.close()


def test_an_index_that_lacks_what_the_database_has_is_not_believed(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    values = filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        # As if the file had come from somewhere else.
        database.execute("UPDATE items SET version = version - 1 WHERE item_id = 'seed0'")

    store = open_store(tmp_path)

    assert "lacks items that the catalogue has" in log.text
    assert held(store) == values
    store.close()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    values = filled(tmp_path)
    half = tmp_path / generations.FOLDER / f"99{generations.PARTIAL}"
    half.mkdir()
    (half / "text.faiss").write_bytes(b"half")

    store = open_store(tmp_path)

    assert not half.exists()
    assert held(store) == values
    store.close()


def test_a_folder_that_cannot_be_written_costs_only_the_next_start(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    values = {f"i{n:02}": float(n + 1) for n in range(30)}
    store = open_store(tmp_path)
    store.settle()
    shutil.rmtree(tmp_path / generations.FOLDER, ignore_errors=True)
    (tmp_path / generations.FOLDER).write_text("a file where the folder should be")

    store.put([an_entry(item_id, value=value) for item_id, value in values.items()])
    store.settle()

    assert "a start takes longer" in log.text
    assert held(store) == values
    store.close()


def test_at_most_two_generations_are_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for turn in range(4):
        store.put([an_entry(f"i{turn}-{n}", value=1.0) for n in range(60)])
        store.settle()
    store.close()

    assert len(numbers(tmp_path)) == 2


def test_an_index_of_changes_that_a_backup_has_not_had_is_removed(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "catalogue"
    values = {f"i{n:02}": float(n + 1) for n in range(30)}
    store = open_store(folder)
    store.put([an_entry(item_id, value=value) for item_id, value in values.items()])
    store.close()
    shutil.copy(folder / FILE, tmp_path / "backup")
    store = open_store(folder)
    store.put([an_entry(f"gone{n}", value=-1.0) for n in range(40)])
    store.settle()
    store.close()
    # Not by `restore`, which wants a new folder; the same versions will come again.
    shutil.copy(tmp_path / "backup", folder / FILE)

    store = open_store(folder)
    later = {f"i9{n}": float(100 + n) for n in range(40)}
    store.put([an_entry(item_id, value=value) for item_id, value in later.items()])
    store.close()
    again = open_store(folder)

    assert "is of another catalogue, and removed" in log.text
    assert held(again) == {**values, **later}
    again.close()


def test_an_index_of_vectors_that_were_made_another_time_is_not_used(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    values = filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        # As where a bundle is dropped and comes again.
        database.execute("UPDATE bundles SET making = 'another'")

    store = open_store(tmp_path)

    assert USED in log.text
    assert held(store) == values
    store.close()


def test_no_index_is_written_that_would_take_the_room_of_the_catalogue(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "ROOM", 2**60)
    store = open_store(tmp_path)
    store.put([an_entry(f"i{n}", value=1.0) for n in range(30)])
    store.settle()
    store.close()

    assert "has not much more room" in log.text
    assert numbers(tmp_path) == []


def test_whoever_still_writes_an_index_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, on = threading.Event(), threading.Event()

    def slowly(*_: object) -> None:
        writing.set()
        on.wait()

    monkeypatch.setattr(generations, "write", slowly)
    monkeypatch.setattr(upkeep, "CLOSING_S", 0.1)
    store = open_store(tmp_path)
    store.put([an_entry(f"i{n}", value=n + 1.0) for n in range(30)])
    assert writing.wait(60)

    with ThreadPoolExecutor(1) as pool:
        closing_it = pool.submit(store.close)
        with pytest.raises(TimeoutError):
            closing_it.result(1)
        with pytest.raises(CatalogueError, match="in use by another process"):
            open_store(tmp_path)
        on.set()
        closing_it.result()

    open_store(tmp_path).close()
