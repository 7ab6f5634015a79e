"""Items that stand in a history by what they are, and are not in the catalogue."""

import base64
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from tests.service.conftest import Serve
from tests.service.running import Client
from tests.service.test_recommend import agree

NEW = {"title": "Unheard of", "genres": ["Drama"]}


def vectors_of(client: Client, item_id: str, attributes: dict[str, Any]) -> dict[str, list[float]]:
    (found,) = client.embed({"item_id": item_id, "attributes": attributes})["results"]
    vectors: dict[str, list[float]] = found["vectors"]
    return vectors


def test_an_inline_item_counts_as_the_same_item_stored(serve: Serve) -> None:
    client = serve()
    inline = client.recommended(["1", {"attributes": NEW}, "2"], k=500)
    first = client.recommended([{"attributes": NEW}], k=500)

    assert "new" not in client.parts.store.snapshot  # it was not stored
    client.put("/items/new", json={"attributes": NEW})

    agree(inline, client.recommended(["1", "new", "2"], k=500))
    agree(first, client.recommended(["new"], k=500))


def test_an_inline_item_is_not_left_out(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": NEW})

    assert "new" in dict(client.recommended([{"attributes": NEW}], k=500))
    assert "new" not in dict(client.recommended(["new"], k=500))


def test_raw_vectors_count_as_the_item_that_has_them(shared: Client, bundle: Bundle) -> None:
    attributes = shared.get("/items/5").json()["attributes"]
    vectors = vectors_of(shared, "5", attributes)
    assert set(vectors) == {"text", "id"}
    told = {"bundle": bundle.bundle_hash, "k": 500, "exclude": ["5"]}
    packed = {
        view: base64.b64encode(np.array(each, "<f4").tobytes()).decode()
        for view, each in vectors.items()
    }

    for strategy in ("text_only", "id_only"):  # what follows film 5 is told by its id alone
        stored = shared.recommended(["3", "5"], k=500, strategy=strategy)
        for given in (vectors, packed):
            history = ["3", {"vectors": given}]
            agree(shared.recommended(history, strategy=strategy, **told), stored)


def test_an_llm_vector_makes_the_views_that_any_item_has(serve: Serve, bundle: Bundle) -> None:
    client = serve()
    answer = client.embed({"item_id": "x", "attributes": NEW}, view="llm")
    llm = answer["results"][0]["vectors"]["llm"]

    found = client.recommended([{"vectors": {"llm": llm}}], k=500, bundle=bundle.bundle_hash)

    agree(found, client.recommended([{"attributes": NEW}], k=500))


def test_inline_items_are_read_once_and_then_from_the_cache(serve: Serve) -> None:
    client = serve()
    history = ["1", {"attributes": NEW}]
    client.recommended(history)
    client.recommended(history)

    assert client.metric('llmemb_embed_items_total{source="model"}') == 1
    assert client.metric('llmemb_embed_items_total{source="cache"}') == 1


def test_what_the_catalogue_lacks_is_listed_beside_inline_items(shared: Client) -> None:
    answer = shared.post(
        "/recommend", json={"history": ["x", {"attributes": NEW}, "y", "x"]}
    ).json()

    assert answer["unknown_history"] == ["x", "y"]
    assert answer["strategy"] == "best"


def test_an_explanation_tells_where_in_the_history_an_inline_item_stands(serve: Serve) -> None:
    client = serve()
    twin = client.get("/items/3").json()["attributes"]  # nothing is nearer to film 3
    body = {"history": ["5", "x", {"attributes": twin}], "k": 500, "explain": "history"}

    answer = client.post("/recommend", json=body).json()
    client.put("/items/twin", json={"attributes": twin})
    stored = client.post("/recommend", json={**body, "history": ["5", "x", "twin"]}).json()

    told = {each["item_id"]: (each.get("because"), each["because_at"]) for each in answer["items"]}
    assert told["3"] == (None, 2)
    assert set(told.values()) == {("5", 0), (None, 2)}
    where = {each["item_id"]: each["because_at"] for each in stored["items"]}
    assert where == {item_id: at for item_id, (_, at) in told.items()}
    assert {each["because"] for each in stored["items"]} == {"5", "twin"}


def test_where_nothing_of_the_history_can_be_compared_no_item_is_named(
    shared: Client, bundle: Bundle
) -> None:
    body = {
        "history": [{"vectors": {"id": [1.0, 0.0, 0.0, 0.0]}}],
        "bundle": bundle.bundle_hash,
        "explain": "history",
        "k": 3,
    }

    answer = shared.post("/recommend", json=body).json()

    assert answer["strategy"] == "best"
    assert [set(each) for each in answer["items"]] == [{"item_id", "score", "popularity"}] * 3


@pytest.mark.parametrize("strategy", ["popular", "id_only"])
def test_the_llm_is_not_run_for_a_strategy_that_does_not_read_what_it_says(
    serve: Serve, strategy: str
) -> None:
    client = serve()

    found = client.recommended(["3", {"attributes": NEW}], strategy=strategy)

    assert client.metric('llmemb_embed_items_total{source="model"}') == 0
    agree(found, client.recommended(["3"], strategy=strategy))
    wrong = {"history": [{"attributes": {"title": {}}}], "strategy": strategy}
    assert client.post("/recommend", json=wrong).status_code == 422


def test_vectors_of_another_bundle_are_a_409(shared: Client) -> None:
    body = {"history": [{"vectors": {"text": [1.0] * 8}}], "bundle": "0" * 64}

    answer = shared.post("/recommend", json=body)

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:llmemb:bundle-mismatch"
    (error,) = answer.json()["errors"]
    assert (error["field"], error["value"]) == ("bundle", f'"{"0" * 64}"')
    assert error["message"].startswith("the request is meant for bundle '000000000000' and ")


@pytest.mark.parametrize(
    ("vectors", "field", "words"),
    [
        ({}, "history[1].vectors", "is empty; send the vector of a view, or `attributes` in"),
        ({"text": [True] * 8}, "history[1].vectors.text[0]", "must be a number"),
        ({"text": True}, "history[1].vectors.text", "must be a list of numbers, or base64"),
        ({"nope": [1.0]}, "history[1].vectors", "there are text, id, llm"),
        ({"text": [1.0] * 7}, "history[1].vectors.text", "must have 8 numbers; got 7"),
        ({"text": [1e20] * 8}, "history[1].vectors.text", "scores would overflow"),
        ({"text": "%"}, "history[1].vectors.text", "not base64"),
    ],
)
def test_a_vector_that_cannot_be_used_is_named(
    shared: Client, bundle: Bundle, vectors: dict[str, Any], field: str, words: str
) -> None:
    body = {"history": ["1", {"vectors": vectors}], "bundle": bundle.bundle_hash}

    answer = shared.post("/recommend", json=body)

    assert answer.status_code == 422
    error = answer.json()["errors"][0]
    assert error["field"] == field
    assert words in error["message"]


def test_an_element_that_is_neither_says_what_it_may_be(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": ["1", 2]}).json()

    assert answer["errors"] == [
        {
            "field": "history[1]",
            "message": "must be an item id, or an object with `attributes` or `vectors`",
            "value": "2",
        }
    ]


def test_as_many_items_may_have_attributes_as_one_embed_takes(serve: Serve) -> None:
    client = serve(max_items=2)
    items = [{"attributes": {"title": str(number)}} for number in range(3)]

    assert client.post("/recommend", json={"history": ["1", *items[:2]]}).status_code == 200
    answer = client.post("/recommend", json={"history": ["1", *items]})

    assert answer.status_code == 422
    assert "has 3 items with attributes; at most 2 may come" in answer.json()["detail"]
