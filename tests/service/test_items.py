import http.client
import json
from urllib.parse import quote

import pytest

from tests.service.conftest import Serve
from tests.service.running import Client

FILM = {"attributes": {"title": "Ran", "release_year": "1985"}}
ODD_IDS = [
    *("a/b", "/", "//x//", "..", ".", "../../etc", "a%2Fb", "%", "a b", "a+b", "a?b=c#d"),
    *("ünï", "日本", "🎬", "é", "e\u0301", "x" * 512),
]


def raw(client: Client, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """A request whose path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    headers = {"content-type": "application/json"} if body is not None else {}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_any_id_can_be_put_read_and_deleted(serve: Serve) -> None:
    client = serve()
    paths = {item_id: "/items/" + quote(item_id, safe="") for item_id in ODD_IDS}

    created = {item_id: raw(client, "PUT", path, FILM) for item_id, path in paths.items()}
    found = {item_id: raw(client, "GET", path) for item_id, path in paths.items()}
    recommended = {item_id for item_id, _ in client.recommended(["1"], k=500)}
    deleted = {item_id: raw(client, "DELETE", path)[0] for item_id, path in paths.items()}
    gone = {item_id: raw(client, "GET", path)[0] for item_id, path in paths.items()}

    assert {status for status, _ in created.values()} == {201}
    assert {each: json.loads(text)["item_id"] for each, (_, text) in found.items()} == {
        item_id: item_id for item_id in ODD_IDS
    }
    assert set(ODD_IDS) <= recommended
    assert set(deleted.values()) == {204}
    assert set(gone.values()) == {404}


def test_a_slash_may_come_unencoded_and_an_encoded_one_is_the_same(serve: Serve) -> None:
    client = serve()

    raw(client, "PUT", "/items/a/b", FILM)

    assert raw(client, "GET", "/items/a%2Fb")[0] == 200
    assert raw(client, "GET", "/items/a%252Fb")[0] == 404  # decoded once: the id a%2Fb


@pytest.mark.parametrize(
    ("encoded", "status"),
    [
        ("%ff", 400),
        ("%", 400),
        ("a%2", 400),
        ("%zz", 400),
        ("%00", 422),
        ("x" * 513, 422),
        ("", 422),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_id_that_is_no_text_is_refused(
    shared: Client, method: str, encoded: str, status: int
) -> None:
    found, text = raw(client=shared, method=method, path=f"/items/{encoded}", body=FILM)

    assert found == status
    assert json.loads(text)["status"] == status


def test_put_is_recommendable_as_soon_as_it_is_answered(serve: Serve) -> None:
    client = serve()

    answer = client.put("/items/new", json=FILM)

    assert answer.status_code == 201
    assert answer.json() == {
        "item_id": "new",
        "attributes": FILM["attributes"],
        "views": ["text"],
        "tokens": len("release year is 1985; title is Ran"),  # a token a byte in the tiny LLM
        "truncated": [],
        "created": True,
    }
    assert "new" in [item_id for item_id, _ in client.recommended(["1"], k=500)]
    assert client.recommended(["new"], k=1)


def test_put_again_says_200_and_replaces_the_vectors(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json=FILM)
    before = dict(client.recommended(["1"], k=500))["new"]

    same = client.put("/items/new", json=FILM)
    unchanged = dict(client.recommended(["1"], k=500))["new"]
    other = client.put("/items/new", json={"attributes": {"title": "Something else"}})
    after = dict(client.recommended(["1"], k=500))["new"]

    assert (same.status_code, other.status_code) == (200, 200)
    assert (same.json()["created"], other.json()["created"]) == (False, False)
    assert unchanged == before
    assert after != before
    assert client.get("/items/new").json()["attributes"] == {"title": "Something else"}


def test_attributes_come_back_as_they_were_sent(serve: Serve) -> None:
    client = serve()
    attributes = {
        "t": "日本 \u2028",
        "n": 1,
        "f": 0.1,
        "b": False,
        "none": None,
        "l": [["a", 1], "b"],
    }

    client.put("/items/x", json={"attributes": attributes})

    assert client.get("/items/x").json()["attributes"] == attributes


def test_a_wrong_attribute_of_put_is_named(shared: Client) -> None:
    nested = shared.put("/items/x", json={"attributes": {"price": {"a": 1}}})
    blank = shared.put("/items/x", json={"attributes": {"title": ""}})
    extra = shared.put("/items/x", json={**FILM, "item_id": "y"})

    fields = [answer.json()["errors"][0]["field"] for answer in (nested, blank, extra)]
    assert [answer.status_code for answer in (nested, blank, extra)] == [422, 422, 422]
    assert fields == ["attributes.price", "attributes", "item_id"]


def test_a_deleted_item_is_neither_recommended_nor_back_after_a_restart(
    serve: Serve, tiny_bundle: object
) -> None:
    first = serve()
    first.put("/items/mine", json=FILM)
    assert first.delete("/items/3").status_code == 204
    assert first.delete("/items/3").status_code == 404
    assert "3" not in dict(first.recommended(["1"], k=500))
    answers = first.recommended(["1"], k=500)
    first.parts.store.close()  # what the end of a process does

    second = serve()

    assert second.get("/items/3").status_code == 404
    assert second.get("/items/mine").status_code == 200
    assert [each for each, _ in second.recommended(["1"], k=500)] == [each for each, _ in answers]
    with pytest.raises(AssertionError, match="none of the 1 items"):
        second.recommended(["3"])
