"""What every store of the catalogue keeps to, whether it lies on this disk or in Milvus."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.service.conftest import Serve
from tests.service.running import Client

STORES = ("embedded", "milvus")
LAST = "11"  # the film of the tiny bundle that has no view `id`
FILM = {"title": "Ran", "release_year": "1985", "genres": ["Drama", "War"]}
FAR = [0.0] * 8  # as far from everything as a vector can be: its inner products are 0
IDS = [
    "a/b/../c",
    "ä é 漢字 🎬",
    "quote \" and \\ and ' %2F",
    "x" * 512,
    "neighbours",
    "in ['a'] or 1",
]


@pytest.fixture(params=STORES)
def start(request: pytest.FixtureRequest, serve: Serve) -> Callable[..., Client]:
    """Starts services on one catalogue, that of the store."""
    if request.param == "embedded":
        return serve
    store = request.getfixturevalue("milvus").url
    return lambda **settings: serve(store=store, **settings)


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    return start()


def path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


def put(client: Client, item_id: str, **fields: object) -> dict[str, Any]:
    answer = client.put(path(item_id), json={"attributes": FILM, **fields})
    assert answer.status_code in {200, 201}, answer.text
    body: dict[str, Any] = answer.json()
    return body


def put_vectors(client: Client, items: dict[str, dict[str, Any]]) -> None:
    """Have items with `attributes`, and the rest of the dictionary, at vectors of view text."""
    bundle = client.get("/info").json()["bundle"]
    lines = [
        json.dumps({"item_id": item_id, "attributes": FILM, **fields})
        for item_id, fields in items.items()
    ]
    answer = client.post(
        "/items:import",
        params={"import_id": uuid.uuid4().hex, "bundle": bundle},
        content="\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["durable_line"] == len(items)


def at(first: float, second: float = 0.0) -> list[float]:
    """A vector of view text."""
    return [first, second, *FAR[2:]]


def found(client: Client, **fields: object) -> list[tuple[str, float]]:
    """What /search finds near (1, 0, …) in view text: inner products are first components."""
    query = {"view": "text", "vector": at(1), "k": 3, **fields}
    answer = client.post("/search", json=query)
    assert answer.status_code == 200, answer.text
    return [(each["item_id"], each["score"]) for each in answer.json()["items"]]


def ids(client: Client, **fields: object) -> list[str]:
    return [item_id for item_id, _ in found(client, **fields)]


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


# --- search ---


def test_a_search_is_exact_with_what_is_excluded_hidden_or_does_not_match(client: Client) -> None:
    put_vectors(
        client,
        {
            "five": {"vectors": {"text": at(50)}, "attributes": {"kind": "odd"}},
            "four": {"vectors": {"text": at(40)}, "attributes": {"kind": "even"}},
            "three": {"vectors": {"text": at(30)}, "attributes": {"kind": "odd"}},
            "two": {"vectors": {"text": at(20)}, "attributes": {"kind": "even"}},
            "secret": {"vectors": {"text": at(90)}, "hidden": True},
            "same": {"vectors": {"text": at(40, 7)}, "attributes": {"kind": "even"}},
        },
    )
    even = {"attribute": "kind", "eq": "even"}

    assert found(client, k=4) == [("five", 50), ("four", 40), ("same", 40), ("three", 30)]
    assert ids(client, exclude=["five", "same", "none"]) == ["four", "three", "two"]
    assert ids(client, filter=even) == ["four", "same", "two"]
    assert ids(client, filter=even, exclude=["four"], k=10) == ["same", "two"]
    assert ids(client, filter={"not": even}, k=2) == ["five", "three"]
    few = client.post(
        "/search", json={"view": "text", "vector": at(1), "k": 10, "filter": even}
    ).json()
    assert few["degraded"] == ["fewer_than_k"]
    near = client.get("/items/five/neighbours", params={"view": "text", "k": 3}).json()
    assert [(each["item_id"], each["score"]) for each in near["items"]] == [
        ("four", 2000),
        ("same", 2000),
        ("three", 1500),
    ]
    assert client.get("/items/none/neighbours").status_code == 404


def test_an_item_that_lacks_a_view_is_not_found_in_it(client: Client) -> None:
    query = {"view": "id", "vector": [1.0, 0.0, 0.0, 0.0], "k": 50}

    answer = client.post("/search", json=query).json()

    assert sorted(each["item_id"] for each in answer["items"]) == sorted(map(str, range(11)))


def test_ten_thousand_ids_can_be_excluded(client: Client) -> None:
    exclude = [f"none{number}" for number in range(9_990)] + [str(number) for number in range(10)]

    assert sorted(ids(client, exclude=exclude, k=5)) == ["10", "11"]


ITEMS: dict[str, dict[str, Any]] = {
    "list": {"tags": ["x", "y"], "year": [1980, 2000], "name": 'Zo\'e "quoted" \\'},
    "one": {"tags": "x", "year": 1990, "ok": True},
    "text": {"tags": "X", "year": "1990", "ok": False, "name": "épée"},
    "long": {"tags": ["z" * 300, "y"], "name": "a" * 200},
    "longer": {"name": "a" * 200 + "b"},
    "none": {"title": "x", "tags": " ", "year": None},
}
FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"attribute": "tags", "eq": "x"}, {"list", "one"}),
    ({"attribute": "tags", "in": ["y", "X"]}, {"list", "text", "long"}),
    ({"attribute": "tags", "in": []}, set()),
    ({"attribute": "tags", "eq": ""}, set()),  # what is blank is no value
    ({"not": {"attribute": "tags", "in": ["", "x"]}}, {"text", "long", "longer", "none"}),
    ({"attribute": "tags", "exists": True}, {"list", "one", "text", "long"}),
    ({"attribute": "tags", "exists": False}, {"longer", "none"}),
    ({"attribute": "ok", "eq": True}, {"one"}),
    ({"attribute": "ok", "exists": True}, {"one", "text"}),
    ({"attribute": "year", "eq": 1990}, {"one"}),
    ({"attribute": "year", "eq": "1990"}, {"text"}),
    ({"attribute": "year", "gt": 1980}, {"list", "one"}),
    ({"attribute": "year", "gte": 1980, "lt": 1985}, {"list"}),
    ({"attribute": "year", "gt": 1985, "lt": 1995}, {"one"}),  # list has values on both sides
    ({"attribute": "year", "lt": 1990}, {"list"}),
    ({"attribute": "year", "lte": 1990}, {"list", "one"}),
    ({"attribute": "year", "gte": "19", "lt": "2"}, {"text"}),
    (
        {"not": {"attribute": "year", "gt": 1985, "lt": 1995}},
        {"list", "text", "long", "longer", "none"},
    ),
    ({"not": {"attribute": "year", "gte": 1990}}, {"text", "long", "longer", "none"}),
    ({"attribute": "name", "eq": 'Zo\'e "quoted" \\'}, {"list"}),
    ({"attribute": "name", "gt": "a" * 200}, {"longer", "text"}),
    ({"attribute": "name", "gte": "é"}, {"text"}),
    ({"attribute": "name", "lt": "a"}, {"list"}),
    (
        {"or": [{"attribute": "ok", "eq": False}, {"attribute": "year", "gt": 1995}]},
        {"list", "text"},
    ),
    (
        {"and": [{"attribute": "tags", "eq": "x"}, {"not": {"attribute": "tags", "eq": "y"}}]},
        {"one"},
    ),
    (
        {"not": {"or": [{"attribute": "tags", "eq": "x"}, {"attribute": "name", "exists": True}]}},
        {"none"},
    ),
]


def test_filters_let_exactly_those_pass_that_match(client: Client) -> None:
    put_vectors(
        client,
        {
            item_id: {"attributes": attributes, "vectors": {"text": at(100)}}
            for item_id, attributes in ITEMS.items()
        },
    )
    others = [str(number) for number in range(12)]

    for told, expected in FILTERS:
        assert set(ids(client, filter=told, k=50, exclude=others)) == expected, told


def test_a_filter_by_what_no_item_has_is_refused_and_says_by_what_one_may(client: Client) -> None:
    put_vectors(client, {"a": {"attributes": {"year": 1990}, "vectors": {"text": at(100)}}})

    for told, field in (
        ({"attribute": "nothing", "eq": 1}, "filter.attribute"),
        ({"attribute": "year", "eq": "1990"}, "filter.eq"),
        ({"attribute": "year"}, "filter"),
        ({"attribute": 'quote"] or true', "eq": 1}, "filter.attribute"),
    ):
        answer = client.post("/search", json={"view": "text", "vector": at(1), "filter": told})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field
    refused = client.post(
        "/recommend", json={"history": ["1"], "filter": {"attribute": "nothing", "eq": 1}}
    )
    assert refused.status_code == 422
    assert '"genres"' in refused.json()["detail"]


def test_only_declared_attributes_can_be_filtered_by_where_some_are(
    start: Callable[..., Client],
) -> None:
    client = start(filterable="genres")

    year = {"attribute": "release_year", "eq": "1950"}
    refused = client.post("/search", json={"view": "text", "vector": at(1), "filter": year})
    assert refused.status_code == 422
    assert client.get("/info").json()["catalogue"]["filterable"] == ["genres"]
    # Film number n has genres n % 4 and n // 4 % 4 of Action, Comedy, Drama, Horror.
    horror = {"attribute": "genres", "eq": "Horror"}
    assert sorted(ids(client, filter=horror, k=50)) == ["11", "3", "7"]


def test_k_come_where_k_match_though_many_nearer_ones_nearly_do(client: Client) -> None:
    decoys = {
        f"decoy{number}": {"attributes": {"year": [1, 9]}, "vectors": {"text": at(500 + number)}}
        for number in range(230)
    }
    put_vectors(client, decoys)
    put_vectors(
        client,
        {
            name: {"attributes": {"year": 5}, "vectors": {"text": at(value)}}
            for name, value in (("a", 30), ("b", 20), ("c", 10))
        },
    )

    assert ids(client, filter={"attribute": "year", "gt": 3, "lt": 7}) == ["a", "b", "c"]


# --- recommendations ---


def test_who_is_not_known_is_shown_what_was_popular(client: Client) -> None:
    answer = client.post("/recommend", json={"history": [], "k": 5, "diversity": 0}).json()

    assert answer["strategy"] == "fallback"
    # Of films 0 to 11, training saw 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1 and 0 interactions.
    assert [(each["item_id"], each["score"]) for each in answer["items"]] == [
        ("0", 6),
        ("1", 5),
        ("2", 5),
        ("3", 4),
        ("4", 4),
    ]
    comedy = {"attribute": "genres", "eq": "Comedy"}  # 1, 4, 5, 6, 7 and 9
    fewer = {"history": ["1"], "strategy": "popular", "k": 4, "filter": comedy, "exclude": ["5"]}
    assert [item_id for item_id, _ in client.recommended(**fewer)] == ["4", "6", "7", "9"]  # type: ignore[arg-type]


def test_recommendations_leave_out_what_they_should_and_say_what_is_unknown(
    client: Client,
) -> None:
    put(client, "secret", hidden=True)
    asked = {"history": ["1", "none", "secret"], "k": 50, "exclude": ["5"]}

    answer = client.post("/recommend", json=asked).json()

    expected = {str(number) for number in range(12)} - {"1", "5"}
    assert {each["item_id"] for each in answer["items"]} == expected
    assert answer["unknown_history"] == ["none"]
    assert client.post("/recommend", json={"history": ["none"]}).status_code == 404
    known = client.recommended(["1"], k=50, exclude_history=False)
    assert "1" in [item_id for item_id, _ in known]


def test_both_stores_recommend_the_same(serve: Serve, milvus: Any, tmp_path: Path) -> None:  # noqa: ANN401
    here, there = serve(), serve("elsewhere", store=milvus.url)
    questions: list[dict[str, Any]] = [
        {"history": ["1", "2", "3"], "k": 12},
        {"history": ["4"], "k": 3, "explain": "history"},
        {"history": ["4", "new"], "k": 8, "diversity": 0.5},
        {"history": ["new"], "k": 8, "explore": 0.5, "seed": 3},
        {"history": ["3", {"attributes": FILM}], "k": 5, "strategy": "text_only"},
        {"history": ["3", "11"], "k": 12, "strategy": "id_only"},
        {"history": [{"attributes": FILM}], "k": 5, "exclude": ["5"]},
        {"history": [], "k": 6},
        {"history": ["2"], "k": 6, "filter": {"attribute": "genres", "in": ["Drama", "Comedy"]}},
    ]
    for client in (here, there):
        put(client, "new")
        put(client, "3", attributes={"title": "Changed"})
        client.delete("/items/7")

    for question in questions:
        mine, theirs = (each.post("/recommend", json=question).json() for each in (here, there))

        for answer in (mine, theirs):
            del answer["took_ms"], answer["recommendation_id"]
        scores = [[each.pop("score") for each in answer["items"]] for answer in (mine, theirs)]
        assert mine == theirs
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert not list((tmp_path / "elsewhere").glob("*"))  # nothing is on this disk


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
