import json
from pathlib import Path

import pytest

from models.item import Catalogue, InvalidItem, Item, parse_item, read_items, write_items


def film(item_id: str = "1", **attributes: object) -> Item:
    return parse_item({"item_id": item_id, "attributes": attributes or {"title": "A"}}, "here")


@pytest.mark.parametrize("item_id", ["a/b", "..", "%2F", "日本", " ", "x" * 512])
def test_any_text_is_an_id(item_id: str) -> None:
    assert film(item_id).item_id == item_id


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attributes": {"title": "A"}}, "item_id"),
        ({"item_id": "", "attributes": {"title": "A"}}, "item_id"),
        ({"item_id": "x" * 513, "attributes": {"title": "A"}}, "512 bytes"),
        ({"item_id": "a\n", "attributes": {"title": "A"}}, "control character"),
        ({"item_id": 7, "attributes": {"title": "A"}}, "item_id"),
        ({"item_id": "1"}, "attributes"),
        ({"item_id": "1", "attributes": {}}, "attributes"),
        ({"item_id": "1", "attributes": {"title": None, "genres": ["", []]}}, "no attribute"),
        ({"item_id": "1", "attributes": {"price": float("nan")}}, "price is nan"),
        ({"item_id": "1", "attributes": {"sizes": [1, float("inf")]}}, r"sizes\[1\] is inf"),
        ({"item_id": "1", "attributes": {"a": [[[[[1]]]]]}}, "nested deeper"),
        ({"item_id": "1", "attributes": {"a": {"b": 1}}}, "attributes"),
        ({"item_id": "1", "attributes": {"a": 1}, "colour": "red"}, "colour"),
        ({"item_id": "1", "attributes": {"a": "\ud800"}}, "surrogate"),
        ([], "valid dictionary"),
    ],
)
def test_what_is_no_item_is_refused_by_field(fields: object, named: str) -> None:
    with pytest.raises(InvalidItem, match=rf"^items.jsonl:3: .*{named}"):
        parse_item(fields, "items.jsonl:3")


def test_saving_items_changes_nothing(tmp_path: Path) -> None:
    items = [film("1", title="Ä", price=1.5, sizes=[1, True, None, ["a", "b"]]), film("2")]

    write_items(tmp_path / "items.jsonl", items)

    assert list(read_items(tmp_path / "items.jsonl")) == items


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"item_id": "2", "attributes": {"price": NaN}}', "NaN is not a finite number"),
        ('{"item_id": "2", "attributes": {"price": 1}', "not a JSON object"),
        ('{"item_id": "2", "item_id": "3", "attributes": {"a": 1}}', "stands twice"),
        ('"item"', "dictionary"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "items.jsonl"
    good = json.dumps({"item_id": "1", "attributes": {"title": "A"}})
    path.write_text(f"{good}\n\n{line}\n")

    with pytest.raises(InvalidItem, match=rf"items.jsonl:3: .*{reason}"):
        list(read_items(path))


def test_rows_follow_a_hash_of_the_id_whatever_the_order_of_the_source() -> None:
    items = [film(str(number)) for number in range(50)]

    catalogue = Catalogue(items)

    assert catalogue.ids == Catalogue(reversed(items)).ids
    assert catalogue.ids != [item.item_id for item in items]
    assert [catalogue.rows[item_id] for item_id in catalogue.ids] == list(range(1, 51))


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(InvalidItem, match="'7' stands twice"):
        Catalogue([film("7"), film("8"), film("7")])
