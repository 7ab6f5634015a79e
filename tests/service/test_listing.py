"""Pages of the catalogue and words to find, in the store itself."""

import random
from pathlib import Path

import pytest

from models.item import Item
from service.errors import Invalid
from service.store import CatalogueStore
from tests.service.catalogues import an_entry, open_store


def walk(store: CatalogueStore, limit: int, query: str | None = None) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = store.items.page(limit, cursor, query)
        assert len(page.items) <= limit
        found += [each.item.item_id for each in page.items]
        cursor = page.cursor
        if cursor is None:
            return found


def with_attributes(store: CatalogueStore, item_id: str, **attributes: object) -> None:
    item = Item.model_validate({"item_id": item_id, "attributes": attributes})
    store.put([an_entry(item_id)._replace(item=item)])


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 100])
def test_pages_of_any_size_give_each_item_once_in_the_order_of_coming(
    tmp_path: Path, limit: int
) -> None:
    store = open_store(tmp_path)
    seeds = walk(store, 100)
    store.put([an_entry("b"), an_entry("a")])

    assert sorted(seeds) == [f"seed{n}" for n in range(5)]
    assert walk(store, limit) == [*seeds, "b", "a"]
    store.close()


def test_a_cursor_stays_right_while_items_come_and_go(tmp_path: Path) -> None:
    chance = random.Random(0)
    store = open_store(tmp_path, count=40)
    stay = walk(store, 100)[::2]
    seen: list[str] = []
    cursor = None
    for step in range(1000):
        page = store.items.page(3, cursor)
        seen += [each.item.item_id for each in page.items]
        cursor = page.cursor
        if cursor is None:
            break
        store.put([an_entry(f"new{step}")])
        store.delete(chance.choice([f"new{step}", f"new{step - 1}", page.items[0].item.item_id]))
        for item_id in page.items[1:2]:
            store.put([an_entry(item_id.item.item_id, f"changed {step}")])

    assert len(seen) == len(set(seen))
    assert {item_id for item_id in stay if item_id in store.snapshot} <= set(seen)
    store.close()


def test_an_item_that_comes_after_the_last_page_is_on_the_next_also_if_another_left(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path, count=0)
    store.put([an_entry("a"), an_entry("b"), an_entry("c")])
    cursor = store.items.page(2).cursor

    store.delete("c")
    store.put([an_entry("d")])

    assert [each.item.item_id for each in store.items.page(5, cursor).items] == ["d"]
    store.close()


def test_words_find_items_by_their_beginnings_whatever_case_and_accents(tmp_path: Path) -> None:
    store = open_store(tmp_path, count=0)
    with_attributes(store, "x-1", title="Amélie Poulain", tags=[["Café"], ["deep"]], year=2001)
    with_attributes(store, "x-2", title="The café of lost youth", on=True)
    with_attributes(store, "日本", title="東京物語")

    found = {
        query: walk(store, 1, query)
        for query in ("CAFE", "amelie", "café lost", "2001", "deep", "x", "x-2", "東京", "true",
                      "elie", "amelie lost", 'cafe "OR', "caf*", "NEAR(cafe", "-- cafe")
    }  # fmt: skip

    assert found == {
        "CAFE": ["x-1", "x-2"],
        "amelie": ["x-1"],
        "café lost": ["x-2"],
        "2001": ["x-1"],
        "deep": ["x-1"],
        "x": ["x-1", "x-2"],
        "x-2": ["x-2"],
        "東京": ["日本"],
        "true": [],
        "elie": [],
        "amelie lost": [],
        'cafe "OR': [],
        "caf*": ["x-1", "x-2"],
        "NEAR(cafe": [],
        "-- cafe": ["x-1", "x-2"],
    }
    store.close()


def test_words_are_in_step_with_every_change(tmp_path: Path) -> None:
    store = open_store(tmp_path, count=0)
    store.put([an_entry("a", "first words")])
    store.put([an_entry("a", "second words")])
    store.hide("a", True)
    store.put([an_entry("b", "third words"), an_entry("b", "fourth words")])
    store.put([an_entry("c", "fifth words")])
    store.delete("c")

    found = {
        word: walk(store, 10, word) for word in ("first", "second", "third", "fourth", "fifth")
    }

    assert found == {"first": [], "second": ["a"], "third": [], "fourth": ["b"], "fifth": []}
    assert walk(store, 10, "words") == ["a", "b"]
    store.close()


@pytest.mark.parametrize("query", ["", " ", "...", "🎬", "*", '"', "\x00"])
def test_a_question_without_a_word_is_refused(tmp_path: Path, query: str) -> None:
    store = open_store(tmp_path)

    with pytest.raises(Invalid, match="no letter and no digit"):
        store.items.page(5, query=query)
    store.close()


def test_a_cursor_of_another_catalogue_or_other_words_is_refused(tmp_path: Path) -> None:
    store, other = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    cursor = store.items.page(2).cursor
    assert cursor

    for wrong, query in (
        *((other.items.page(2).cursor, None), (cursor, "seed"), ("garbage", None), ("é", None)),
        *((cursor[:-4], None), ("A" * 5000, None), ("====", None), (cursor + "AAAA", None)),
    ):
        with pytest.raises(Invalid, match="ask without it to begin anew"):
            store.items.page(2, wrong, query)
    store.close()
    again = open_store(tmp_path / "a")
    assert len(again.items.page(5, cursor).items) == 3
    again.close()
    other.close()


def test_an_export_is_the_catalogue_of_one_moment(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.hide("seed1", True)
    before = {each.item.item_id: each for each in store.items.page(10).items}

    export = store.items.export(at_once=2)
    exported = list(next(export))
    store.put([an_entry("new"), an_entry("seed4", "changed")])
    for item_id in before:
        store.delete(item_id)
    exported += [each for some in export for each in some]

    assert {each.item.item_id: each for each in exported} == before
    assert [each.item.item_id for each in exported] == list(before)
    assert before["seed1"].hidden
    store.close()


def test_who_reads_waits_for_nobody_who_writes(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    with store.locked() as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM items")
        held = store.items.get("seed0")
        page = store.items.page(10)
        database.execute("ROLLBACK")

    assert held is not None
    assert len(page.items) == 5
    store.close()
