"""Some items in one request: each by itself, or all or none."""

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.prompt import PromptTemplate
from tests.service.conftest import Serve
from tests.service.running import Client, in_this_process
from tests.service.test_items import FILM
from tests.tiny import write_tiny_bundle


def item(item_id: str, title: str = "Ran", **fields: object) -> dict[str, Any]:
    return {"item_id": item_id, "attributes": {"title": title}, **fields}


def batch(client: Client, *items: object, **fields: object) -> httpx.Response:
    return client.post("/items:batch", json={"items": items, **fields})


def statuses(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [each["status"] for each in answer.json()["results"]]


def vectors_of(client: Client, attributes: dict[str, Any], view: str | None = None) -> Any:  # noqa: ANN401
    fields = {"view": view} if view else {}
    answer = client.embed({"item_id": "x", "attributes": attributes}, **fields)
    return answer["results"][0]["vectors"]


def test_each_item_has_its_own_result_and_what_is_sound_is_recommendable(serve: Serve) -> None:
    client = serve()
    client.put("/items/old", json={"attributes": {"title": "Ran"}})

    answer = batch(
        client,
        item("new"),
        item("old"),
        item("bad", title=" "),
        item("1", "Another title"),
        item("new", "twice"),
        {"attributes": {"title": "nobody"}},
        7,
        item("odd", price={"a": 1}),
        item("nested", **{"attributes": {"price": {"a": 1}}}),
        {"item_id": "nameless", "attributes": {"_": True, "": 1}},
        item("a/b", hidden=True),
    )

    assert statuses(answer) == [201, 200, 422, 200, 422, 422, 422, 422, 422, 422, 201]
    results = answer.json()["results"]
    assert answer.json()["failed"] == 7
    assert [each["errors"][0]["field"] for each in results if each["errors"]] == [
        "items[2].attributes",
        "items[4].item_id",
        "items[5].item_id",
        "items[6]",
        "items[7].price",
        "items[8].attributes.price",
        "items[9].attributes",
    ]
    assert [each["changed"] for each in results][:4] == [True, False, False, True]
    known = dict(client.recommended(["1"], k=500))
    assert "new" in known
    assert not {"bad", "odd", "nested", "nameless", "a/b"} & known.keys()
    stored = client.get("/items/new")
    assert stored.json()["version"] == results[0]["version"]
    assert stored.json()["attributes"] == {"title": "Ran"}
    assert client.get("/items/a%2Fb").json()["hidden"] is True


def test_one_that_cannot_be_rendered_costs_the_others_nothing(
    tiny_llm: Path, tmp_path: Path
) -> None:
    template = PromptTemplate(noun="film", exclude=("secret",))
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_llm, template=template)
    hidden = {"item_id": "secret", "attributes": {"secret": "x"}}
    many = [item(f"n{number}", "x" * 100 + str(number)) for number in range(20)]

    # Room for one request at a time: one by one the others would be refused.
    with in_this_process(bundle, tmp_path / "catalogue", max_queue_tokens=40) as client:
        answer = batch(client, *many[:10], hidden, *many[10:])
        batches = client.metric("llmemb_batch_items_sum")

    assert statuses(answer) == [201] * 10 + [422] + [201] * 10
    (error,) = answer.json()["results"][10]["errors"]
    assert "no attribute with a value is left" in error["message"]
    assert batches == 20


def test_all_or_nothing_is_that_and_tells_all_that_is_wrong(serve: Serve) -> None:
    client = serve()

    answer = batch(client, item("a"), item("b", " "), item("c"), item("a"), atomic=True)

    assert answer.status_code == 422
    fields = [each["field"] for each in answer.json()["errors"]]
    assert fields == ["items[1].attributes", "items[3].item_id"]
    assert "nothing was changed" in answer.json()["detail"]
    assert client.get("/items/a").status_code == 404
    assert statuses(batch(client, item("a"), item("c"), atomic=True)) == [201, 201]


def test_a_version_that_has_passed_refuses_its_item_or_all(serve: Serve) -> None:
    client = serve()
    version = client.put("/items/a", json=FILM).json()["version"]

    single = batch(
        client, item("a", "Ikiru", if_version=version + 9), item("b", if_version=0), item("c")
    )
    whole = batch(client, item("d"), item("b", "Ikiru", if_version=0), atomic=True)
    right = batch(client, item("a", "Ikiru", if_version=version))

    assert statuses(single) == [412, 201, 201]
    (refused, *_) = single.json()["results"]
    assert (refused["version"], refused["changed"]) == (version, False)
    assert refused["errors"][0]["field"] == "items[0].if_version"
    assert whole.status_code == 412
    assert "item 'b' is in the catalogue already" in whole.json()["detail"]
    assert client.get("/items/d").status_code == 404
    assert statuses(right) == [200]
    assert client.get("/items/a").json()["attributes"] == {"title": "Ikiru"}


def test_given_vectors_are_stored_as_they_are_and_the_llm_is_not_run(serve: Serve) -> None:
    client = serve()
    bundle = client.get("/info").json()["bundle"]
    vector = [0.5 * number for number in range(8)]
    packed = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
    ran = client.metric('llmemb_embed_items_total{source="model"}')

    answer = batch(
        client,
        item("numbers", vectors={"text": vector}),
        item("packed", vectors={"text": packed}),
        bundle=bundle,
    )

    assert statuses(answer) == [201, 201]
    assert client.metric('llmemb_embed_items_total{source="model"}') == ran
    for item_id in ("numbers", "packed"):
        views = client.parts.store.snapshot.views(item_id)
        assert views
        assert views.keys() == {"text"}
        np.testing.assert_array_equal(views["text"], np.array(vector, np.float32))
        assert item_id in dict(client.recommended(["1"], k=500))
    again = batch(client, item("numbers", vectors={"text": packed}), bundle=bundle)
    other = batch(client, item("numbers", vectors={"text": vector[::-1]}), bundle=bundle)
    assert [each.json()["results"][0]["changed"] for each in (again, other)] == [False, True]
    made = client.put("/items/numbers", json={"attributes": {"title": "Ran"}})
    assert made.json()["version"] > other.json()["results"][0]["version"]
    views = client.parts.store.snapshot.views("numbers")
    wanted = np.array(vectors_of(client, {"title": "Ran"})["text"], np.float32)
    np.testing.assert_allclose(views["text"], wanted, rtol=1e-4, atol=1e-6)  # type: ignore[index]


def test_an_llm_vector_gives_the_views_that_the_attributes_would_give(serve: Serve) -> None:
    client = serve()
    bundle = client.get("/info").json()["bundle"]
    film = client.get("/items/3").json()["attributes"]
    llm = vectors_of(client, film, "llm")["llm"]
    before = client.parts.store.snapshot.views("3")

    answer = batch(
        client,
        {"item_id": "twin", "attributes": film, "vectors": {"llm": llm}},
        {"item_id": "3", "attributes": film, "vectors": {"llm": llm}},
        bundle=bundle,
    )

    assert statuses(answer) == [201, 200]
    snapshot = client.parts.store.snapshot
    twin, same = snapshot.views("twin"), snapshot.views("3")
    assert before
    assert twin
    assert same
    assert (twin.keys(), same.keys()) == ({"text"}, {"text", "id"})  # training knew the one
    np.testing.assert_allclose(twin["text"], before["text"], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(same["id"], before["id"])


NAN = base64.b64encode(np.array([1, 2, 3, 4, 5, 6, 7, np.nan], "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("vectors", "field", "reason"),
    [
        ({"text": [1.0] * 7}, "items[1].vectors.text", "must have 8 numbers; got 7"),
        ({"id": [1.0] * 8}, "items[1].vectors.id", "must have 4 numbers; got 8"),
        ({"text": [1e300] * 8}, "items[1].vectors.text", "beyond 1e+15"),
        ({"text": NAN}, "items[1].vectors.text", "is not finite"),
        ({"text": NAN[:-8]}, "items[1].vectors.text", "32 bytes"),
        ({"text": "not base64!"}, "items[1].vectors.text", "not base64"),
        ({"nope": [1.0]}, "items[1].vectors", "there is no view 'nope'; there are text, id, llm"),
        ({}, "items[1].vectors", "is empty"),
        ({"llm": []}, "items[1].vectors.llm", "must have 16 numbers; got 0"),
    ],
)
def test_a_wrong_vector_names_item_and_view(
    serve: Serve, vectors: object, field: str, reason: str
) -> None:
    client = serve()
    bundle = client.get("/info").json()["bundle"]
    items = [item("sound"), item("wrong", vectors=vectors)]

    single, whole = (
        batch(client, *items, bundle=bundle, atomic=atomic) for atomic in (False, True)
    )

    assert statuses(single) == [201, 422]
    assert whole.status_code == 422
    for errors in (single.json()["results"][1]["errors"], whole.json()["errors"]):
        assert errors[0]["field"] == field
        assert reason in errors[0]["message"]
    assert client.get("/items/wrong").status_code == 404


def test_vectors_of_another_bundle_are_a_409_and_nothing_is_written(serve: Serve) -> None:
    client = serve()
    given = item("a", vectors={"text": [1.0] * 8})

    other = batch(client, item("b"), given, bundle="f" * 64)
    untold = batch(client, item("b"), given)

    assert (other.status_code, other.json()["type"]) == (409, "urn:llmemb:bundle-mismatch")
    assert "vectors of two bundles never meet" in other.json()["detail"]
    assert (untold.status_code, untold.json()["errors"][0]["field"]) == (422, "bundle")
    assert client.get("/items/b").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": []}, "items"),
        ({}, "items"),
        ({"items": [item(str(n)) for n in range(65)]}, "items"),
        ({"items": [item("a")], "atomic": 1}, "atomic"),
        ({"items": [item("a")], "extra": 1}, "extra"),
        ({"items": "all"}, "items"),
    ],
)
def test_a_batch_that_is_none_is_a_422(shared: Client, body: object, field: str) -> None:
    answer = shared.post("/items:batch", json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_a_batch_is_one_commit(serve: Serve) -> None:
    client = serve()
    asked: list[str] = []
    client.parts.store._database.set_trace_callback(asked.append)

    batch(client, *(item(f"i{n}") for n in range(64)))

    assert sum(each == "COMMIT" for each in asked) == 1
