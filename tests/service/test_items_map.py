"""GET /map: where items stand, in columns."""

import numpy as np

from models.bundle import Bundle
from tests.service.conftest import Serve
from tests.service.running import Client
from tests.tiny import films


def test_items_stand_where_their_vectors_put_them(shared: Client, bundle: Bundle) -> None:
    answer = shared.get("/map").json()

    assert set(answer) == {"bundle", "view", "total", "ids", "x", "y", "interactions"}
    assert (answer["bundle"], answer["view"], answer["total"]) == (bundle.bundle_hash, "text", 12)
    assert set(answer["ids"]) == set(bundle.catalogue.ids)
    table, _ = bundle.training_views()["text"]
    places = bundle.plane.places(table)
    for item_id, x, y in zip(answer["ids"], answer["x"], answer["y"], strict=True):
        at = bundle.catalogue.rows[item_id] - 1
        np.testing.assert_allclose([x, y], places[at], atol=1e-4)
    told = dict(zip(answer["ids"], answer["interactions"], strict=True))
    assert [told[str(film)] for film in range(12)] == [6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0]


def test_new_items_are_on_the_map_and_those_that_are_hidden_or_gone_are_not(serve: Serve) -> None:
    client = serve()
    client.put("/items/twin", json={"attributes": films(12)[3].attributes})
    client.patch("/items/5", json={"hidden": True})
    client.delete("/items/6")

    answer = client.get("/map").json()

    ids = answer["ids"]
    assert set(ids) == {*(str(film) for film in range(12)), "twin"} - {"5", "6"}
    twin, film = ids.index("twin"), ids.index("3")
    assert abs(answer["x"][twin] - answer["x"][film]) < 1e-3
    assert abs(answer["y"][twin] - answer["y"][film]) < 1e-3
    assert answer["interactions"][twin] == 0


def test_an_attribute_comes_as_it_stands(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "New", "price": 3.5}})

    genres = client.get("/map", params={"attribute": "genres"}).json()
    prices = client.get("/map", params={"attribute": "price"}).json()

    told = dict(zip(genres["ids"], genres["values"], strict=True))
    assert told["3"] == ["Horror", "Action"]
    assert told["new"] is None
    assert dict(zip(prices["ids"], prices["values"], strict=True))["new"] == 3.5


def test_an_attribute_that_no_item_has_is_a_422(shared: Client) -> None:
    answer = shared.get("/map", params={"attribute": "genre"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "field": "attribute",
        "message": "no item has it; `catalogue` of GET /info tells which there are",
        "value": '"genre"',
    }


def test_of_more_items_the_same_sample_comes_whatever_else_does(serve: Serve) -> None:
    client = serve()
    some = client.get("/map", params={"limit": 5, "attribute": "title"}).json()
    again = client.get("/map", params={"limit": 5}).json()
    others = [str(film) for film in range(12) if str(film) not in some["ids"]]
    for each in others[:3]:
        client.delete(f"/items/{each}")

    after = client.get("/map", params={"limit": 5}).json()

    assert (len(some["ids"]), len(some["values"]), some["total"]) == (5, 5, 12)
    assert again["ids"] == some["ids"]
    assert (after["ids"], after["total"]) == (some["ids"], 9)


def test_limits_are_bounded(shared: Client) -> None:
    for limit in (0, 100_001, "many"):
        answer = shared.get("/map", params={"limit": limit})
        assert answer.status_code == 422
    assert shared.get("/map", params={"colour": "genres"}).status_code == 422


def test_a_client_that_has_it_is_told_so_until_the_catalogue_changes(serve: Serve) -> None:
    client = serve()
    first = client.get("/map")
    has = {"If-None-Match": first.headers["etag"]}

    same = client.get("/map", headers=has)
    client.patch("/items/5", json={"hidden": True})
    changed = client.get("/map", headers=has)

    assert first.headers["cache-control"] == "private, no-cache"
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == first.headers["etag"]
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]
