"""Filters in answers: /recommend, /search and neighbours, while the catalogue changes."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from models.bundle import Bundle
from models.item import Item
from service import index, opening, upkeep, vectors
from service.filters import parse
from service.rows import Entry
from service.store import CatalogueStore
from service.upgrade import Upgrade
from tests.service.catalogues import an_entry, open_store
from tests.service.conftest import Serve
from tests.service.running import Client
from tests.service.test_columns import attributes, filters, matches
from tests.service.test_filters import Given
from tests.service.upgrading import WAIT_S, ask, ended, put, stopped_at

# Of the tiny bundle's films 0 to 11, number n came out in 1950 + n.
COMEDIES = {"1", "4", "5", "6", "7", "9"}
COMEDY = {"attribute": "genres", "eq": "Comedy"}
FROM_1955 = {"attribute": "release_year", "gte": "1955"}


def ids(items: list[tuple[str, float]]) -> list[str]:
    return [item_id for item_id, _ in items]


def searched(client: Client, **fields: object) -> dict[str, Any]:
    answer = client.post("/search", json={"view": "text", "vector": [1.0] * 8, "k": 500, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def found(answer: dict[str, Any]) -> set[str]:
    return {each["item_id"] for each in answer["items"]}


def neighbours(client: Client, item_id: str, told: object, **query: object) -> dict[str, Any]:
    answer = client.get(
        f"/items/{item_id}/neighbours", params={"k": 500, "filter": json.dumps(told), **query}
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_recommendations_that_match_are_those_of_all_without_the_others(shared: Client) -> None:
    everything = shared.recommended(["1", "2"], k=500)

    comedies = shared.recommended(["1", "2"], k=500, filter=COMEDY)

    assert comedies == [pair for pair in everything if pair[0] in COMEDIES]
    assert ids(comedies)
    both = shared.recommended(["1", "2"], k=500, filter={"and": [COMEDY, FROM_1955]})
    assert set(ids(both)) == {"5", "6", "7", "9"}


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "popular"},
        {"strategy": "id_only"},
        {"strategy": "text_only"},
        {"history": []},
        {"diversity": 0.5},
        {"explore": 1.0},
    ],
)
def test_however_items_are_found_and_arranged_only_those_that_match_come(
    shared: Client, fields: dict[str, Any]
) -> None:
    asked = {"history": ["1"], "k": 500, "filter": COMEDY, **fields}

    answer = shared.post("/recommend", json=asked).json()

    assert found(answer) == COMEDIES - set(asked["history"])
    assert "fewer_than_k" in answer["degraded"]


def test_search_and_neighbours_take_the_same_filters(shared: Client) -> None:
    assert found(searched(shared, filter=COMEDY)) == COMEDIES
    assert found(searched(shared, filter={"not": COMEDY})) == set(map(str, range(12))) - COMEDIES
    assert found(neighbours(shared, "1", COMEDY)) == COMEDIES - {"1"}
    assert found(neighbours(shared, "1", None)) == set(map(str, range(12))) - {"1"}


def test_no_filter_and_null_are_the_same(shared: Client) -> None:
    assert shared.recommended(["1"], filter=None) == shared.recommended(["1"])


def test_fewer_than_k_that_match_are_said_and_k_that_match_all_come(shared: Client) -> None:
    six = searched(shared, filter=COMEDY, k=6)
    seven = searched(shared, filter=COMEDY, k=7)

    assert (len(six["items"]), six["degraded"]) == (6, [])
    assert (len(seven["items"]), seven["degraded"]) == (6, ["fewer_than_k"])


def test_nothing_that_matches_is_an_empty_answer(shared: Client) -> None:
    nothing = {"attribute": "genres", "eq": "Western"}

    answer = shared.post("/recommend", json={"history": ["1"], "filter": nothing}).json()

    assert (answer["items"], answer["degraded"]) == ([], ["fewer_than_k"])
    assert searched(shared, filter=nothing)["degraded"] == ["fewer_than_k"]
    assert neighbours(shared, "1", nothing)["items"] == []


def test_a_number_where_all_items_have_strings_is_refused_and_else_matches_numbers(
    serve: Serve,
) -> None:
    client = serve()
    body = {"history": ["1"], "filter": {"attribute": "release_year", "gte": 1955}}
    refused = client.post("/recommend", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {
            "field": "filter.gte",
            "message": 'asks for numbers, and items have strings there; send "1955"',
            "value": "1955",
        }
    ]
    assert found(searched(client, filter=FROM_1955)) == {str(n) for n in range(5, 12)}

    client.put("/items/new", json={"attributes": {"title": "New", "release_year": 1999}})

    assert ids(client.recommended(["1"], filter=body["filter"])) == ["new"]
    assert found(searched(client, filter=FROM_1955)) == {str(n) for n in range(5, 12)}


def test_filters_and_excluded_and_hidden_items_are_all_heeded(serve: Serve) -> None:
    client = serve()
    client.patch("/items/5", json={"hidden": True})
    unknown = [f"unknown {number}" for number in range(9998)]

    answer = client.recommended(["1"], k=500, filter=COMEDY, exclude=["4", "6", *unknown])

    assert set(ids(answer)) == {"7", "9"}
    client.patch("/items/5", json={"hidden": False})
    assert set(ids(client.recommended(["1"], k=500, filter=COMEDY))) == COMEDIES - {"1"}


def test_a_filter_sees_every_change_at_once(serve: Serve) -> None:
    client = serve()
    assert found(searched(client, filter=COMEDY)) == COMEDIES

    client.patch("/items/4", json={"attributes": {"genres": ["Action"]}})
    assert found(searched(client, filter=COMEDY)) == COMEDIES - {"4"}
    client.put("/items/new", json={"attributes": {"title": "New", "genres": [["Comedy"]]}})
    assert found(searched(client, filter=COMEDY)) == COMEDIES - {"4"} | {"new"}
    client.delete("/items/5")
    assert found(searched(client, filter=COMEDY)) == COMEDIES - {"4", "5"} | {"new"}
    line = {"item_id": "line", "attributes": {"title": "Line", "genres": "Comedy"}}
    client.post(
        "/items:import",
        params={"import_id": "one"},
        content=json.dumps(line),
        headers={"Content-Type": "application/x-ndjson"},
    )
    client.post(
        "/items:batch",
        json={"items": [{"item_id": "6", "attributes": {"title": "No genres any more"}}]},
    )
    assert found(searched(client, filter=COMEDY)) == COMEDIES - {"4", "5", "6"} | {"new", "line"}
    assert found(searched(client, filter={"attribute": "genres", "exists": False})) == {"6"}


def test_a_filter_sees_the_same_after_a_restart(serve: Serve, tiny_bundle: Path) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "New", "price": 9.5}})
    folder = client.app.state.serving.settings.catalogue_dir
    client.parts.store.close()

    again = CatalogueStore.open(folder, Bundle.open(tiny_bundle, dtype="float32"))

    told = again.filter_of({"attribute": "price", "lt": 10})
    allowed = again.snapshot.allowed(np.empty(0, np.int64), told)
    assert [again.snapshot.item_id(at) for at in np.flatnonzero(allowed)] == ["new"]
    again.close()


@pytest.mark.parametrize("searched_by", ["comparing", "faiss", "clusters"])
def test_k_that_match_come_from_a_large_catalogue_too(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, searched_by: str
) -> None:
    """As if 312 items were many: candidates of each view, and those scored."""
    if searched_by != "comparing":
        monkeypatch.setattr(index, "COMPARE_ALL", 0)
        monkeypatch.setattr(index, "MERGE_AT", 50)
    if searched_by == "clusters":
        monkeypatch.setattr(vectors, "CLUSTER_FROM", 200)
    monkeypatch.setattr("service.recommender.CANDIDATES", 5)
    monkeypatch.setattr("service.recommender.CANDIDATES_PER_K", 1)
    client = serve(max_items=300)
    items = [
        {"item_id": f"n{n}", "attributes": {"title": f"New {n}", "rare": n % 100 == 7, "n": n}}
        for n in range(300)
    ]
    assert client.post("/items:batch", json={"items": items}).json()["failed"] == 0
    client.parts.store.settle()
    client.parts.recommender._score_all = 0
    rare = {"attribute": "rare", "eq": True}

    assert set(ids(client.recommended(["1"], k=3, filter=rare))) == {"n7", "n107", "n207"}
    assert found(searched(client, filter=rare, k=3)) == {"n7", "n107", "n207"}
    one = {"and": [rare, {"attribute": "n", "gt": 7, "lt": 207}]}
    assert ids(client.recommended(["1"], k=25, filter=one)) == ["n107"]
    # Film 4 follows film 3 in training; it is a candidate, but no film is rare.
    assert "4" not in ids(client.recommended(["3"], k=500, filter=rare))
    many = client.recommended(["1"], k=120, filter={"attribute": "n", "lt": 150})
    assert len(many) == 120


def test_what_is_no_filter_is_a_422_that_tells_the_path(shared: Client) -> None:
    wrong = {"and": [COMEDY, {"attribute": "release_year", "gte": [1990]}]}
    answers = [
        shared.post("/recommend", json={"history": ["1"], "filter": wrong}),
        shared.post("/search", json={"view": "text", "vector": [1.0] * 8, "filter": wrong}),
        shared.get("/items/1/neighbours", params={"filter": json.dumps(wrong)}),
    ]

    for answer in answers:
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["field"] == "filter.and[1].gte"
        assert error["value"] == "[1990]"


def test_questions_that_come_at_once_keep_their_own_filters(shared: Client) -> None:
    asked: list[object] = [COMEDY, FROM_1955, None, {"not": COMEDY}] * 10
    alone = [set(ids(shared.recommended(["1"], k=500, filter=told))) for told in asked[:4]]

    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda told: shared.recommended(["1"], k=500, filter=told), asked)

    assert [set(ids(each)) for each in together] == alone * 10


@pytest.mark.parametrize("told", [7, "genres", [], {}, {"genres": "Comedy"}, False])
def test_other_json_is_no_filter(shared: Client, told: object) -> None:
    answer = shared.post("/recommend", json={"history": ["1"], "filter": told})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "filter"


@pytest.mark.parametrize("told", ["", "{", '{"attribute": "a", "eq": NaN}', '"\\ud800"'])
def test_a_filter_of_neighbours_that_is_no_json_is_a_400(shared: Client, told: str) -> None:
    answer = shared.get("/items/1/neighbours", params={"filter": told})

    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:llmemb:malformed"


def test_an_attribute_that_no_item_has_is_a_422_that_names_those_there_are(
    serve: Serve,
) -> None:
    client = serve()
    body = {"history": ["1"], "filter": {"not": {"attribute": "genre", "eq": "Comedy"}}}

    answer = client.post("/recommend", json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "filter.not.attribute"
    assert answer.json()["errors"][0]["message"] == (
        'no item has this attribute; filters may name "genres", "release_year", "title"'
    )
    client.put("/items/new", json={"attributes": {"genre": "Drama"}})
    assert client.post("/recommend", json=body).status_code == 200
    assert client.get("/info").json()["catalogue"]["filterable"] is None


def test_where_attributes_are_declared_only_those_are_filtered_by(serve: Serve) -> None:
    client = serve(filterable="genres, later")

    assert found(searched(client, filter=COMEDY)) == COMEDIES
    assert found(searched(client, filter={"attribute": "later", "exists": True})) == set()
    refused = client.post("/recommend", json={"history": ["1"], "filter": FROM_1955})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["message"] == (
        'cannot be filtered by; filters may name "genres", "later"'
    )
    client.put("/items/new", json={"attributes": {"title": "New", "later": 1}})
    assert found(searched(client, filter={"attribute": "later", "eq": 1})) == {"new"}
    assert client.get("/info").json()["catalogue"]["filterable"] == ["genres", "later"]


def test_a_name_that_is_too_long_is_refused(shared: Client) -> None:
    told = {"attribute": "a" * 257, "eq": 1}

    answer = shared.post("/recommend", json={"history": ["1"], "filter": told})

    assert answer.status_code == 422
    assert "too long a name" in answer.json()["detail"]


def test_a_start_from_the_index_on_disk_filters_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "KEEP_FROM", 10)
    monkeypatch.setattr(opening, "KEEP_FROM", 10)
    monkeypatch.setattr(index, "MERGE_AT", 5)
    caplog.set_level("INFO")
    a_ran = {"attribute": "title", "eq": "Ran"}

    def matching(store: CatalogueStore) -> set[str]:
        told = store.filter_of(a_ran)
        snapshot = store.snapshot
        allowed = snapshot.allowed(np.empty(0, np.int64), told)
        return {snapshot.item_id(at) for at in np.flatnonzero(allowed).tolist()}

    store = open_store(tmp_path)
    store.put([an_entry(f"i{n}", "Ran" if n % 2 else "Kagemusha") for n in range(30)])
    store.settle()
    store.put([an_entry("i1", "Kagemusha"), an_entry("i2", "Ran"), an_entry("new", "Ran")])
    store.delete("i3")
    before = matching(store)
    store.close()
    caplog.clear()

    again = open_store(tmp_path)
    assert "anew" not in caplog.text
    assert matching(again) == before
    assert {"i2", "new"} <= before
    assert not {"i1", "i3"} & before
    again.close()

    fewer = open_store(tmp_path, filterable=frozenset({"title"}))  # other columns, another index
    assert "is not used" in caplog.text
    assert matching(fewer) == before
    fewer.close()


def sayable(told: dict[str, Any]) -> dict[str, Any]:
    """Attributes of which at least one says something, as every item needs."""
    return {**told, "title": "Ran"}


names = some.sampled_from([f"seed{number}" for number in range(3)] + ["x", "y", "z"])
puts = some.tuples(
    some.just("put"),
    some.lists(some.tuples(names, attributes, some.sampled_from([None, True, False])), max_size=3),
)
hides = some.tuples(some.just("hide"), some.tuples(names, some.booleans()))
deletes = some.tuples(some.just("delete"), names)
others = some.tuples(some.sampled_from(["settle", "open again"]), some.none())


@settings(max_examples=60, deadline=None)
@given(
    some.lists(some.one_of(puts, hides, deletes, puts, others), max_size=8),
    some.lists(filters, min_size=1, max_size=3),
    some.sampled_from([1, 2, 1000]),
)
def test_whatever_changes_a_filter_takes_what_is_stored_and_matches(
    steps: list[tuple[str, Any]], asked: list[dict[str, Any]], merge_at: int
) -> None:
    held: dict[str, tuple[dict[str, Any], bool]] = {
        f"seed{number}": ({"title": "Ran"}, False) for number in range(5)
    }
    # Declared, so that filters may name what no item has.
    declared = frozenset({"a", "b", "and", "ab", "title"})
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(index, "MERGE_AT", merge_at)
        patch.setattr(upkeep, "KEEP_FROM", 3)  # generations on disk, too
        patch.setattr(opening, "KEEP_FROM", 3)
        store = open_store(Path(folder), filterable=declared)
        for step, told in steps:
            if step == "put":
                entries = []
                for item_id, attrs, hidden in told:
                    item = Item(item_id=item_id, attributes=sayable(attrs))
                    entries.append(Entry(item, None, {"text": np.ones(4, np.float32)}, hidden))
                    was = held.get(item_id, ({}, False))[1]
                    held[item_id] = (sayable(attrs), was if hidden is None else hidden)
                store.put(entries)
            elif step == "hide":
                store.hide(*told)
                if told[0] in held:
                    held[told[0]] = (held[told[0]][0], told[1])
            elif step == "delete":
                store.delete(told)
                held.pop(told, None)
            elif step == "settle":
                store.settle()
            else:
                store.close()
                store = open_store(Path(folder), filterable=declared)
            for each in asked:
                snapshot = store.snapshot  # once: upkeep may give items other places meanwhile
                allowed = snapshot.allowed(np.empty(0, np.int64), parse(each, Given()))
                taken = [snapshot.item_id(at) for at in np.flatnonzero(allowed).tolist()]
                assert sorted(taken) == sorted(
                    item_id
                    for item_id, (attrs, hidden) in held.items()
                    if not hidden and matches(attrs, each)
                )
        store.close()


def test_another_bundle_filters_by_all_that_was_written_before_and_meanwhile(
    serve: Serve, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(bundles_dir=bundles)
    put(client, "before", "Before", genres="Comedy")
    with stopped_at(Upgrade, "_flip", monkeypatch) as (reached, go):
        ask(client, "same")
        assert reached.wait(WAIT_S)
        put(client, "meanwhile", "Meanwhile", genres="Comedy")
        put(client, "4", "No genres any more")
        assert client.patch("/items/6", json={"hidden": True}).status_code == 200
        assert client.delete("/items/5").status_code == 204
        go.set()
        assert ended(client)["state"] == "flipped"

    expected = COMEDIES - {"4", "5", "6"} | {"before", "meanwhile"}
    assert found(searched(client, filter=COMEDY)) == expected
    put(client, "after", "After", genres="Comedy")
    assert found(searched(client, filter=COMEDY)) == expected | {"after"}
