"""What is found and recommended from a catalogue, which is the same from every store of it."""

from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import Serve
from tests.service.contract import FILM, at, found, ids, put, put_vectors
from tests.service.running import Client


@pytest.fixture
def client(start: Serve) -> Client:
    return start()


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
    start: Serve,
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
