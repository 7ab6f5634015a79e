import http.client
import json
import threading
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
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
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
        "hidden": False,
        "version": 13,  # the bundle's twelve items were twelve changes
    }
    assert answer.headers["etag"] == '"13"'
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
    serve: Serve,
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


def test_a_put_of_the_same_leaves_the_version_as_it_is(serve: Serve) -> None:
    client = serve()
    first = client.put("/items/new", json=FILM)
    same = client.put("/items/new", json=FILM)
    other = client.put("/items/new", json={"attributes": {"title": "Ikiru"}})

    assert same.json()["version"] == first.json()["version"]
    assert other.json()["version"] > first.json()["version"]
    assert other.headers["etag"] == client.get("/items/new").headers["etag"]
    assert other.headers["etag"] == f'"{other.json()["version"]}"'


def test_of_two_writers_that_read_the_same_version_the_second_is_told(serve: Serve) -> None:
    client = serve()
    read = client.put("/items/new", json=FILM).headers["etag"]

    first = client.put(
        "/items/new", json={"attributes": {"title": "Ikiru"}}, headers={"if-match": read}
    )
    late = [
        client.put("/items/new", json=FILM, headers={"if-match": read}),
        client.patch("/items/new", json={"hidden": True}, headers={"if-match": read}),
        client.delete("/items/new", headers={"if-match": read}),
    ]

    assert first.status_code == 200
    assert [answer.status_code for answer in late] == [412, 412, 412]
    assert {answer.json()["type"] for answer in late} == {"urn:llmemb:precondition-failed"}
    assert f"has version {first.json()['version']} now" in late[0].json()["detail"]
    assert client.get("/items/new").json()["attributes"] == {"title": "Ikiru"}
    gone = client.delete("/items/new", headers={"if-match": first.headers["etag"]})
    assert gone.status_code == 204
    again = client.put("/items/new", json=FILM, headers={"if-match": first.headers["etag"]})
    assert again.status_code == 412  # it is another item now, or none
    assert client.put("/items/new", json=FILM, headers={"if-match": "*"}).status_code == 412


def test_a_put_may_ask_that_the_item_is_new(serve: Serve) -> None:
    client = serve()

    answers = [
        client.put("/items/new", json=FILM, headers={"if-none-match": "*"}) for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [201, 412]
    assert "is in the catalogue already" in answers[1].json()["detail"]


def test_many_writers_that_ask_for_a_new_item_make_one(serve: Serve) -> None:
    client = serve()
    statuses: list[int] = []

    def write(number: int) -> None:
        body = {"attributes": {"title": f"by {number}"}}
        answer = client.put("/items/new", json=body, headers={"if-none-match": "*"})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=write, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [201] + [412] * 7


def test_what_has_not_changed_need_not_come_again(serve: Serve) -> None:
    client = serve()
    tag = client.get("/items/1").headers["etag"]

    same = client.get("/items/1", headers={"if-none-match": tag})
    other = client.get("/items/1", headers={"if-none-match": '"999"'})
    refused = client.get("/items/1", headers={"if-match": '"999"'})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert (other.status_code, refused.status_code) == (200, 412)


def test_a_tag_that_is_none_is_a_400(shared: Client) -> None:
    answer = shared.put("/items/x", json=FILM, headers={"if-match": "3"})

    assert answer.status_code == 400
    assert "send * or the ETag of an answer" in answer.json()["detail"]


def test_a_patch_changes_what_it_names_and_the_vectors_with_it(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {**FILM["attributes"], "genre": ["Drama"]}})
    before = dict(client.recommended(["1"], k=500))["new"]

    answer = client.patch(
        "/items/new",
        content=json.dumps({"attributes": {"title": "Kagemusha", "genre": None, "gone": None}}),
        headers={"content-type": "application/merge-patch+json"},
    )

    wanted = {"title": "Kagemusha", "release_year": "1985"}
    assert (answer.status_code, answer.json()["attributes"]) == (200, wanted)
    assert client.get("/items/new").json() == answer.json()
    assert client.get("/items/new").headers["etag"] == answer.headers["etag"]
    assert dict(client.recommended(["1"], k=500))["new"] != before
    whole = client.put("/items/whole", json={"attributes": wanted})
    assert whole.status_code == 201
    scores = dict(client.recommended(["1"], k=500))
    assert scores["new"] == pytest.approx(scores["whole"], rel=1e-5)


def test_a_patch_that_changes_nothing_leaves_the_version_as_it_is(serve: Serve) -> None:
    client = serve()
    version = client.put("/items/new", json=FILM).json()["version"]

    answers = [
        client.patch("/items/new", json=body)
        for body in ({}, {"attributes": {}}, FILM, {"hidden": False}, {"hidden": None})
    ]

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {version}


def test_a_number_is_not_the_boolean_that_python_takes_it_for(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "Ran", "sale": 1}})

    answer = client.patch("/items/new", json={"attributes": {"sale": True}})

    assert answer.json()["attributes"]["sale"] is True
    assert client.get("/items/new").json()["attributes"]["sale"] is True


def test_patches_at_once_are_all_done(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json=FILM)
    statuses: list[int] = []

    def patch(number: int) -> None:
        body = {"attributes": {f"a{number}": number}}
        statuses.append(client.patch("/items/new", json=body).status_code)

    threads = [threading.Thread(target=patch, args=[n]) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200, 200, 200]
    attributes = client.get("/items/new").json()["attributes"]
    assert {name: attributes[name] for name in ("a0", "a1", "a2")} == {"a0": 0, "a1": 1, "a2": 2}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"attributes": {"title": None, "release_year": None}}, 422, "attributes"),
        ({"attributes": None}, 422, "attributes"),
        ({"attributes": {"title": {"a": 1}}}, 422, "attributes.title"),
        ({"attributes": {f"a{n}": 1 for n in range(65)}}, 422, "attributes"),
        ({"hidden": "yes"}, 422, "hidden"),
        ({"version": 3}, 422, "version"),
        ([], 422, "body"),
    ],
)
def test_a_patch_that_cannot_be_merged_names_the_field(
    serve: Serve, body: object, status: int, field: str
) -> None:
    client = serve()
    client.put("/items/new", json=FILM)

    answer = client.patch("/items/new", json=body)

    assert answer.status_code == status, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert client.get("/items/new").json()["attributes"] == FILM["attributes"]


def test_a_patch_of_nothing_that_is_there_is_a_404(shared: Client) -> None:
    assert shared.patch("/items/nobody", json={"hidden": True}).status_code == 404


def test_a_hidden_item_is_answered_nowhere_but_counts_in_a_history(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json=FILM)
    alone = client.recommended(["new"], k=3)
    vector = client.embed({"item_id": "x", **FILM})["results"][0]["vectors"]["text"]
    search = {"view": "text", "vector": vector, "k": 500}

    hidden = client.patch("/items/new", json={"hidden": True}).json()

    assert hidden["hidden"] is True
    assert "new" not in dict(client.recommended(["1"], k=500))
    found = client.post("/search", json=search).json()["items"]
    assert "new" not in [each["item_id"] for each in found]
    near = client.get("/items/1/neighbours", params={"k": 500}).json()["items"]
    assert "new" not in [each["item_id"] for each in near]
    assert client.recommended(["new"], k=3) == alone
    assert client.get("/items/new/neighbours").status_code == 200
    assert client.get("/items/new").json()["hidden"] is True

    client.put("/items/new", json={"attributes": {"title": "Ikiru"}})
    assert "new" not in dict(client.recommended(["1"], k=500))  # a new title does not show it
    client.put("/items/new", json={**FILM, "hidden": False})
    assert "new" in dict(client.recommended(["1"], k=500))


def test_all_hidden_leaves_nothing_to_recommend(serve: Serve) -> None:
    client = serve()
    for number in range(12):
        client.patch(f"/items/{number}", json={"hidden": True})

    answer = client.post("/recommend", json={"history": ["1"], "exclude_history": False})

    assert answer.status_code == 200
    assert (answer.json()["items"], answer.json()["degraded"]) == ([], ["fewer_than_k"])
    assert client.metric("llmemb_index_items") == 0
