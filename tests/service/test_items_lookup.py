"""Some items by their ids, in one request."""

import httpx

from tests.service.conftest import Serve
from tests.service.running import Client


def look_up(client: Client, *item_ids: object) -> httpx.Response:
    return client.post("/items:lookup", json={"item_ids": list(item_ids)})


def test_items_come_in_the_order_of_their_ids_each_once(shared: Client) -> None:
    answer = look_up(shared, "7", "2", "7").json()

    assert [each["item_id"] for each in answer["items"]] == ["7", "2"]
    assert answer["items"][1] == shared.get("/items/2").json()
    assert answer["unknown"] == []


def test_what_the_catalogue_lacks_is_listed(shared: Client) -> None:
    answer = look_up(shared, "nobody", "3", "a/b ü").json()

    assert [each["item_id"] for each in answer["items"]] == ["3"]
    assert answer["unknown"] == ["nobody", "a/b ü"]


def test_a_new_item_is_found_and_a_deleted_one_is_not(serve: Serve) -> None:
    client = serve()
    client.put("/items/a%2Fb", json={"attributes": {"title": "Ran"}, "hidden": True})
    client.delete("/items/3")

    answer = look_up(client, "a/b", "3").json()

    (item,) = answer["items"]
    assert item["attributes"] == {"title": "Ran"}
    assert item["hidden"] is True
    assert answer["unknown"] == ["3"]


def test_what_is_no_list_of_ids_is_refused_by_name(shared: Client) -> None:
    for wrong in ([], ["x"] * 1001, [7], [""], ["x" * 513]):
        answer = shared.post("/items:lookup", json={"item_ids": wrong})

        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"].startswith("item_ids")
