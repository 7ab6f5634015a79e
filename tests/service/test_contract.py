"""What every store of the catalogue keeps to, whether it lies on this disk or in Milvus.

What is answered from one: tests.service.test_contract_answers.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.service.conftest import Serve
from tests.service.contract import FILM, at, found, ids, path, put, put_vectors
from tests.service.running import Client

LAST = "11"  # the film of the tiny bundle that has no view `id`
IDS = [
    "a/b/../c",
    "ä é 漢字 🎬",
    "quote \" and \\ and ' %2F",
    "x" * 512,
    "neighbours",
    "in ['a'] or 1",
]


@pytest.fixture
def client(start: Serve) -> Client:
    return start()


# --- items ---


def test_a_new_catalogue_has_the_items_of_the_bundle(client: Client) -> None:
    first, last = client.get("/items/0").json(), client.get(f"/items/{LAST}").json()

    assert first["attributes"]["title"] == "Film number 0"
    assert (first["hidden"], first["views"]) == (False, ["text", "id"])
    assert last["views"] == ["text"]
    assert client.get("/items/12").status_code == 404
    info = client.get("/info").json()
    assert (info["items"], info["catalogue"]["hidden"]) == (12, 0)
    assert client.get("/health/ready").json()["items"] == 12
    assert client.metric("llmemb_index_items") == 12


def test_an_item_that_was_put_is_there_and_put_again_it_is_as_it_was(client: Client) -> None:
    new = client.put("/items/new", json={"attributes": FILM})
    same = client.put("/items/new", json={"attributes": FILM})
    other = client.put("/items/new", json={"attributes": {"title": "Kagemusha"}})

    assert [each.status_code for each in (new, same, other)] == [201, 200, 200]
    assert [each.json()["created"] for each in (new, same, other)] == [True, False, False]
    assert new.json()["version"] == same.json()["version"] < other.json()["version"]
    stored = client.get("/items/new")
    assert stored.json()["attributes"] == {"title": "Kagemusha"}
    assert stored.json()["version"] == other.json()["version"]
    assert stored.headers["etag"] == other.headers["etag"]
    assert stored.json()["views"] == ["text"]


def test_an_item_can_be_found_once_its_put_is_answered_and_not_once_its_delete_is(
    client: Client,
) -> None:
    vector = client.embed({"item_id": "new", "attributes": FILM})["results"][0]["vectors"]["text"]
    put(client, "new")

    assert client.post("/search", json={"view": "text", "vector": vector, "k": 12}).json()["items"][
        0
    ]["item_id"] == ("new")
    assert "new" in [item_id for item_id, _ in client.recommended(["1"], k=20)]
    assert client.delete("/items/new").status_code == 204
    assert client.delete("/items/new").status_code == 404
    assert client.get("/items/new").status_code == 404
    assert "new" not in [item_id for item_id, _ in client.recommended(["1"], k=20)]


def test_a_patch_changes_what_it_names_and_nothing_else(client: Client) -> None:
    before = put(client, "new")

    patched = client.patch(
        "/items/new", json={"attributes": {"release_year": "1986", "genres": None}}
    ).json()
    hidden = client.patch("/items/new", json={"hidden": True}).json()

    assert patched["attributes"] == {"title": "Ran", "release_year": "1986"}
    assert before["version"] < patched["version"] < hidden["version"]
    assert (hidden["hidden"], hidden["views"]) == (True, ["text"])
    assert hidden["attributes"] == patched["attributes"]
    assert "new" not in ids(client, k=50)
    assert client.patch("/items/new", json={"hidden": False}).json()["hidden"] is False
    assert "new" in ids(client, k=50)
    assert client.patch("/items/none", json={"hidden": True}).status_code == 404


def test_writes_are_done_only_while_their_condition_holds(client: Client) -> None:
    first = put(client, "new")["version"]
    second = put(client, "new", attributes={"title": "Other"})["version"]
    new = {"json": {"attributes": FILM}}

    stale, there = {"If-Match": f'"{first}"'}, {"If-None-Match": "*"}
    assert client.put("/items/new", headers=stale, **new).status_code == 412
    assert client.put("/items/new", headers=there, **new).status_code == 412
    assert client.patch("/items/new", headers=stale, json={"hidden": True}).status_code == 412
    assert client.delete("/items/new", headers=stale).status_code == 412
    assert client.get("/items/new").json()["version"] == second
    known = {"If-None-Match": f'"{second}"'}
    assert client.get("/items/new", headers=known).status_code == 304
    current = {"If-Match": f'"{second}"'}
    assert client.put("/items/new", headers=current, **new).status_code == 200
    assert client.put("/items/none", headers=current, **new).status_code == 412


def test_an_item_taken_out_and_put_again_has_a_version_that_it_never_had(client: Client) -> None:
    before = put(client, "new")["version"]
    client.delete("/items/new")

    assert put(client, "new")["version"] > before


@pytest.mark.parametrize("item_id", IDS)
def test_an_id_may_be_any_text(client: Client, item_id: str) -> None:
    put_vectors(client, {item_id: {"vectors": {"text": at(100)}}})

    assert client.get(path(item_id)).json()["item_id"] == item_id
    assert found(client, k=1) == [(item_id, 100)]
    assert item_id not in ids(client, exclude=[item_id])
    looked_up = client.post("/items:lookup", json={"item_ids": [item_id, "none", "3"]}).json()
    assert [each["item_id"] for each in looked_up["items"]] == [item_id, "3"]
    assert looked_up["unknown"] == ["none"]
    assert client.delete(path(item_id)).status_code == 204
    assert client.get(path(item_id)).status_code == 404


def test_a_batch_has_a_result_of_each_item(client: Client) -> None:
    first = put(client, "a")["version"]
    items = [
        {"item_id": "a", "attributes": {"title": "Other"}, "if_version": first},
        {"item_id": "b", "attributes": FILM, "if_version": 0},
        {"item_id": "0", "attributes": FILM, "if_version": 0},
        {"item_id": "c", "attributes": {}},
    ]

    answer = client.post("/items:batch", json={"items": items}).json()

    assert [each["status"] for each in answer["results"]] == [200, 201, 412, 422]
    assert answer["failed"] == 2
    assert client.get("/items/0").json()["attributes"]["title"] == "Film number 0"


def test_given_vectors_are_kept_and_the_same_again_change_nothing(client: Client) -> None:
    items = {"a": {"vectors": {"text": at(50)}}}
    put_vectors(client, items)
    version = client.get("/items/a").json()["version"]
    bundle = client.get("/info").json()["bundle"]

    def again(vector: list[float]) -> dict[str, Any]:
        item = {"item_id": "a", "attributes": FILM, "vectors": {"text": vector}}
        answer = client.post("/items:batch", json={"items": [item], "bundle": bundle})
        result: dict[str, Any] = answer.json()["results"][0]
        return result

    assert (again(at(50))["changed"], again(at(50))["version"]) == (False, version)
    assert again(at(60))["version"] > version
    assert found(client, k=1) == [("a", 60)]
    client.patch("/items/a", json={"hidden": True})
    client.patch("/items/a", json={"hidden": False})
    assert found(client, k=1) == [("a", 60)]


# --- lists ---


def pages(client: Client, limit: int, between: Callable[[], object] = lambda: None) -> list[str]:
    seen, cursor = [], None
    while True:
        query = {"limit": limit, **({"cursor": cursor} if cursor else {})}
        body = client.get("/items", params=query).json()
        seen += [each["item_id"] for each in body["items"]]
        assert len(body["items"]) <= limit
        cursor = body["next"]
        if cursor is None:
            return seen
        between()


def test_pages_list_each_item_once_while_others_come_and_go(client: Client) -> None:
    put(client, "hidden", hidden=True)
    numbers = iter(range(100))

    def change() -> None:
        put(client, f"new{next(numbers)}")
        client.delete("/items/3")

    assert sorted(pages(client, 5)) == sorted(["hidden", *map(str, range(12))])
    seen = pages(client, 5, change)

    assert len(seen) == len(set(seen))
    assert {"hidden", *map(str, range(12))} - {"3"} <= set(seen)
    assert sorted(pages(client, 1000)) == sorted({*seen, *pages(client, 7)} - {"3"})


def test_a_cursor_of_another_catalogue_is_refused(client: Client) -> None:
    cursor = client.get("/items", params={"limit": 1}).json()["next"]

    for wrong in ("nonsense", cursor[:-4] + "AAA=", cursor[::-1]):
        answer = client.get("/items", params={"cursor": wrong})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "cursor"


def test_an_export_has_every_item_and_can_be_imported_again(client: Client) -> None:
    put(client, "hidden", hidden=True)

    lines = client.get("/items:export").text.splitlines()
    again = client.post(
        "/items:import",
        params={"import_id": "again"},
        content="\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
    ).json()

    assert sorted(json.loads(each)["item_id"] for each in lines) == sorted(
        ["hidden", *map(str, range(12))]
    )
    assert {"hidden": True}.items() <= next(
        each for each in map(json.loads, lines) if each["item_id"] == "hidden"
    ).items()
    assert (again["created"], again["changed"], again["unchanged"]) == (0, 0, 13)


# --- imports ---


def test_an_import_tells_how_far_it_came_and_goes_on_from_there(client: Client) -> None:
    good = [json.dumps({"item_id": f"i{n}", "attributes": {"title": f"T {n}"}}) for n in range(3)]

    def send(lines: list[str]) -> Any:  # noqa: ANN401
        return client.post(
            "/items:import",
            params={"import_id": "one"},
            content="\n".join(lines),
            headers={"content-type": "application/x-ndjson"},
        )

    broken = send([*good, "{"])
    assert broken.status_code == 422
    told = client.get("/imports/one").json()
    assert (told["state"], told["durable_line"], told["created"]) == ("broken", 3, 3)
    assert "lines[4]" in told["error"]
    more = json.dumps({"item_id": "i3", "attributes": {"title": "T 3"}})
    told = send([*good, more]).json()
    assert (told["state"], told["durable_line"], told["created"]) == ("finished", 4, 4)
    assert client.get("/imports/none").status_code == 404
    assert client.get("/items/i3").json()["attributes"] == {"title": "T 3"}


# --- what not every store can do ---


def test_what_a_store_lacks_is_told_and_answered_with_501(client: Client) -> None:
    lacks = client.get("/info").json()["catalogue"]["lacks"]
    two = [{"item_id": name, "attributes": FILM} for name in ("a", "b")]
    asked = {
        "words": client.get("/items", params={"q": "film"}),
        "map": client.get("/map"),
        "atomic": client.post("/items:batch", json={"items": two, "atomic": True}),
        "reindex": client.post("/admin/bundles", json={"bundle": "other"}),
    }

    for name, answer in asked.items():
        if name in lacks:
            assert answer.status_code == 501
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "urn:llmemb:unsupported"
            assert answer.json()["detail"] == lacks[name]
        else:
            assert answer.status_code != 501
    indexed = client.post("/embed", json={"items": two, "index": True})
    assert indexed.status_code == (501 if "atomic" in lacks else 200)
    one = client.post("/embed", json={"items": two[:1], "index": True})
    assert one.status_code == 200
    assert client.get("/admin/bundles").json()["active"] == client.get("/info").json()["bundle"]
