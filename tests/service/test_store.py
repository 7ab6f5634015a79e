import sqlite3
from pathlib import Path

import numpy as np
import pytest

from models.item import Item
from service.errors import PreconditionFailed, StorageFull
from service.index import Snapshot
from service.rows import Entry, Outcome
from service.schema import FILE, CatalogueError
from service.store import CatalogueStore, WrongVector
from service.versions import ALWAYS, exactly
from tests.service.catalogues import an_entry, an_item, open_store


def created(outcomes: list[Outcome]) -> list[bool]:
    return [each.created for each in outcomes]


def held(store: CatalogueStore, item_id: str) -> Item | None:
    stored = store.items.get(item_id)
    return stored and stored.item


def test_a_new_store_holds_the_items_of_the_bundle(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    assert len(store.snapshot) == 5
    assert held(store, "seed3") == an_item("seed3")
    assert store.snapshot.views("seed3").keys() == {"text", "id"}  # type: ignore[union-attr]
    store.close()


def test_what_was_put_and_deleted_is_so_after_opening_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert created(store.put([an_entry("a", value=2), an_entry("b")])) == [True, True]
    assert created(store.put([an_entry("a", "Kagemusha", value=3)])) == [False]
    assert store.delete("b")
    assert store.delete("seed1")
    assert not store.delete("seed1")
    store.close()

    again = open_store(tmp_path)

    assert len(again.snapshot) == 5
    assert held(again, "a") == an_item("a", "Kagemusha")
    np.testing.assert_array_equal(again.snapshot.views("a")["text"], np.full(4, 3))  # type: ignore[index]
    assert again.items.get("b") is None
    assert again.items.get("seed1") is None
    again.close()


def test_the_same_attributes_again_change_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("a", value=1)])
    before = store.snapshot
    changes = store._database.total_changes

    (again,) = store.put([an_entry("a", value=2)])

    assert (again.created, again.changed) == (False, False)
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

    assert store.items.get("a") is None
    store.close()


def test_a_version_grows_with_every_change_and_with_nothing_else(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    (first,) = store.put([an_entry("a")])
    (same,) = store.put([an_entry("a", value=9)])
    (second,) = store.put([an_entry("a", "Kagemusha")])
    third = store.hide("a", True)
    again = store.hide("a", True)
    store.delete("a")
    (reborn,) = store.put([an_entry("a")])

    versions = [each.version for each in (first, second, third, reborn)]
    assert versions == sorted(set(versions))  # type: ignore[type-var]
    assert (same.version, again.version) == (first.version, third.version)
    assert (same.changed, again.changed) == (False, False)
    store.close()


def test_an_item_that_came_back_has_none_of_its_old_versions_after_a_restart_either(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    (before,) = store.put([an_entry("a")])
    store.delete("a")
    store.close()

    store = open_store(tmp_path)
    (after,) = store.put([an_entry("a")])

    assert after.version > before.version  # type: ignore[operator]
    store.close()


def test_a_write_whose_condition_does_not_hold_is_refused_and_with_it_the_whole_put(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    (first,) = store.put([an_entry("a")])
    (second,) = store.put([an_entry("a", "Kagemusha")])
    assert first.version

    with pytest.raises(PreconditionFailed, match=f"'a' has version {second.version}"):
        store.put([an_entry("b"), an_entry("a", "Ikiru")], [ALWAYS, exactly(first.version)])

    assert held(store, "a") == an_item("a", "Kagemusha")
    assert "b" not in store.snapshot
    assert store.items.get("b") is None
    store.close()


def test_where_it_is_not_all_or_none_the_others_are_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("a")])

    refused, done = store.put(
        [an_entry("a", "Ikiru"), an_entry("b")], [exactly(0), exactly(0)], atomic=False
    )

    assert "is in the catalogue already" in str(refused.refused)
    assert (refused.changed, done.created) == (False, True)
    assert held(store, "a") == an_item("a")
    store.close()


def test_hidden_items_are_kept_but_not_answered_also_after_opening_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("new")])
    store.hide("new", True)
    store.hide("seed1", True)
    store.put([an_entry("born hidden")._replace(hidden=True)])
    answered = answerable(store)
    store.close()

    again = open_store(tmp_path)

    assert answered == answerable(again) == {"seed0", "seed2", "seed3", "seed4"}
    assert "seed1" in again.snapshot
    assert (again.stats.items, again.stats.hidden) == (7, 3)
    again.put([an_entry("new", "Kagemusha")])  # which says nothing of it
    assert "new" not in answerable(again)
    again.hide("new", False)
    assert "new" in answerable(again)
    again.close()


def answerable(store: CatalogueStore) -> set[str]:
    snapshot = store.snapshot
    may = snapshot.allowed(np.empty(0, np.int64))
    return {snapshot.item_id(place) for place in np.flatnonzero(may).tolist()}


def test_vectors_that_were_given_are_kept_until_others_are_given_or_made(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    given = an_entry("a", value=2)._replace(given=True)

    (first,) = store.put([given])
    (same,) = store.put([given])
    (other,) = store.put([an_entry("a", value=3)._replace(given=True)])
    (made,) = store.put([an_entry("a", value=4)])
    (made_again,) = store.put([an_entry("a", value=5)])

    assert [each.changed for each in (first, same, other, made, made_again)] == [
        *(True, False, True, True, False)
    ]
    views = store.snapshot.views("a")
    assert views
    np.testing.assert_array_equal(views["text"], np.full(4, 4))
    store.close()


def test_many_are_read_by_one_question(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    asked: list[str] = []
    store.items._database.set_trace_callback(asked.append)

    found = store.items.get_many(["seed2", "nobody", "seed0", "seed2"])

    assert [each and each.item.item_id for each in found] == ["seed2", None, "seed0", "seed2"]
    assert len(asked) == 1
    store.close()


def test_stats_count_the_attributes_of_all_items_without_reading_them(tmp_path: Path) -> None:
    store = open_store(tmp_path, count=2)
    entry = an_entry("a")._replace(
        item=Item(
            item_id="a",
            attributes={"title": "Ran", "year": 1985, "tags": ["a", "b"], "ok": True, "no": None,
                        "mixed": ["a", 1], "paths": [["a"], ["b"]], "blank": " "},
        )
    )  # fmt: skip

    store.put([entry])
    with_it = store.stats.kinds
    store.put([an_entry("a", "Kagemusha")])
    store.put([an_entry("b")])
    store.delete("b")
    after = store.stats.kinds
    store.close()
    again = open_store(tmp_path)

    assert with_it == {
        ("title", "string"): 3,
        ("year", "number"): 1,
        ("tags", "list of strings"): 1,
        ("ok", "boolean"): 1,
        ("mixed", "list"): 1,
        ("paths", "list of lists"): 1,
    }
    assert after == again.stats.kinds == {("title", "string"): 3}
    again.close()


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
                database.execute("UPDATE item_vectors SET vector = x'00000000'")
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
    assert store.items.get("i0") is None
    store._database.execute("PRAGMA max_page_count=100000")
    assert created(store.put([an_entry("i0")])) == [True]
    store.close()


def test_what_cannot_be_brought_into_the_index_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "with_changes", _no_memory)
        with pytest.raises(MemoryError):
            store.put([an_entry("a")])
        with pytest.raises(MemoryError):
            store.hide("seed0", hidden=True)
        with pytest.raises(MemoryError):
            store.delete("seed1")

    assert store.items.get("a") is None
    (outcome,) = store.put([an_entry("b")])
    assert (outcome.created, outcome.version) == (True, 6)  # after five items of the bundle
    store.close()
    again = open_store(tmp_path)
    assert len(again.snapshot) == again.stats.items == 6
    again.close()


def _no_memory(*_: object, **__: object) -> Snapshot:
    raise MemoryError


def test_an_item_that_is_only_hidden_keeps_the_vectors_that_are_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put([an_entry("a", value=1.0)])

    # The same attributes; a batch of other company may round them to another vector.
    store.put([an_entry("a", value=2.0)._replace(hidden=True)])

    views = store.snapshot.views("a")
    assert views is not None
    assert views["text"].tolist() == [1, 1, 1, 1]
    store.close()
