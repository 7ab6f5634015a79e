"""Pages, words, neighbours and the export, over HTTP."""

import http.client
import json
import socket
import time
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest

from tests.service.conftest import Serve
from tests.service.half_sent import wait_until_in_flight
from tests.service.running import Client, wait_until
from tests.service.test_items import FILM, ODD_IDS, raw


def walk(client: Client, **query: str | int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = {}
    while True:
        answer = client.get("/items", params={**query, **cursor})
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        cursor = {"cursor": answer.json()["next"]}
        if cursor["cursor"] is None:
            return found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_the_pages_are_the_items_in_the_order_of_coming(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={**FILM, "hidden": True})

    listed = walk(client, limit=5)

    assert len(listed) == 13
    assert len({each["item_id"] for each in listed}) == 13
    assert listed[-1] == client.get("/items/new").json()
    assert listed[0] == client.get("/items/" + listed[0]["item_id"]).json()


def test_items_are_found_by_words_as_soon_as_they_are_put(serve: Serve) -> None:
    client = serve()
    client.put("/items/a", json={"attributes": {"title": "Amélie of Montmartre"}})
    client.put("/items/b", json={"attributes": {"title": "Montmartre by night"}})

    assert [each["item_id"] for each in walk(client, q="montm", limit=1)] == ["a", "b"]
    assert [each["item_id"] for each in walk(client, q="AMELIE montmartre")] == ["a"]
    client.delete("/items/a")
    assert [each["item_id"] for each in walk(client, q="montm")] == ["b"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"cursor": "garbage"}, "cursor"),
        ({"cursor": "x" * 201}, "cursor"),
        ({"cursor": "\x00"}, "cursor"),
        ({"q": "..."}, "q"),
        ({"q": "x" * 201}, "q"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"page": "2"}, "page"),
    ],
)
def test_a_wrong_question_names_the_parameter(
    shared: Client, query: dict[str, str], field: str
) -> None:
    answer = shared.get("/items", params=query)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_a_cursor_of_another_catalogue_is_a_422_with_a_sentence(
    serve: Serve, shared: Client
) -> None:
    cursor = serve().get("/items", params={"limit": 3}).json()["next"]

    answer = shared.get("/items", params={"cursor": cursor})

    assert answer.status_code == 422
    assert "ask without it to begin anew" in answer.json()["detail"]


def test_neighbours_are_the_largest_inner_products_without_the_item_itself(serve: Serve) -> None:
    client = serve()
    client.put("/items/twin", json={"attributes": client.get("/items/3").json()["attributes"]})
    snapshot = client.parts.store.snapshot
    vectors = {each["item_id"]: snapshot.views(each["item_id"]) for each in walk(client)}
    mine = vectors["3"]["text"]  # type: ignore[index]
    wanted = sorted(
        (each for each in vectors if each != "3"),
        key=lambda each: (-float(vectors[each]["text"] @ mine), each),  # type: ignore[index]
    )

    answer = client.get("/items/3/neighbours", params={"view": "text", "k": 5})

    assert answer.status_code == 200
    assert answer.json()["view"] == "text"
    assert [each["item_id"] for each in answer.json()["items"]] == wanted[:5]
    assert answer.json()["degraded"] == []
    assert answer.json()["took_ms"] > 0
    more = client.get("/items/3/neighbours", params={"view": "text", "k": 500})
    assert more.json()["degraded"] == ["fewer_than_k"]


@pytest.mark.parametrize("item_id", [*ODD_IDS, "a/neighbours", "neighbours", "/neighbours"])
def test_any_id_has_neighbours(serve: Serve, item_id: str) -> None:
    client = serve()
    path = "/items/" + quote(item_id, safe="")
    assert raw(client, "PUT", path, FILM)[0] == 201

    status, text = raw(client, "GET", path + "/neighbours?k=3")
    itself, told = raw(client, "GET", path)

    assert status == 200, text
    assert len(json.loads(text)["items"]) == 3
    assert (itself, json.loads(told)["item_id"]) == (200, item_id)


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/items/nobody/neighbours", 404, None),
        ("/items//neighbours", 422, "item_id"),
        ("/items/1/neighbours?view=nope", 422, "view"),
        ("/items/1/neighbours?k=0", 422, "k"),
        ("/items/1/neighbours?k=501", 422, "k"),
        ("/items/%ff/neighbours", 400, None),
    ],
)
def test_a_wrong_question_for_neighbours_is_told(
    shared: Client, path: str, status: int, field: str | None
) -> None:
    found, text = raw(shared, "GET", path)

    assert found == status, text
    errors = json.loads(text)["errors"]
    assert [each["field"] for each in errors] == ([field] if field else [])


def test_a_view_that_an_item_lacks_is_a_422_that_tells_what_it_has(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json=FILM)

    answer = client.get("/items/new/neighbours", params={"view": "id"})

    assert answer.status_code == 422
    assert "item 'new' has only text" in answer.json()["detail"]


def test_an_export_says_all_of_every_item(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={**FILM, "hidden": True})
    client.put("/items/odd", json={"attributes": {"t": "日本 \u2028 \n", "l": [[1.5, True]]}})

    answer = client.get("/items:export")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    exported = lines(answer.text)
    listed = walk(client)
    assert exported == [{k: v for k, v in each.items() if k != "views"} for each in listed]


def test_an_export_has_no_deadline_and_is_of_one_moment_while_it_is_read_slowly(
    serve: Serve,
) -> None:
    client = serve(request_timeout_s=3)
    for number in range(30):
        client.parts.store.put(_many(number))
    before = len(client.parts.store.snapshot)
    with closing(http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)) as connection:
        # Before it connects, and little: else the system reads some megabytes ahead.
        connection.sock = socket.socket()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
        connection.sock.connect(("127.0.0.1", client.port))
        connection.request("GET", "/items:export")
        answer = connection.getresponse()
        received = answer.read(1000)
        started = time.monotonic()
        while time.monotonic() - started < 4:  # longer than the deadline, and always reading
            received += answer.read(50_000)
            client.put("/items/later", json=FILM)
            time.sleep(0.04)
        seen = len(received)
        received += answer.read()

    assert len(lines(received.decode())) == before
    assert "later" not in {each["item_id"] for each in lines(received.decode())}
    assert seen < len(received) / 2


def test_a_client_that_reads_nothing_of_an_export_is_left(serve: Serve) -> None:
    client = serve(request_timeout_s=0.3)
    for number in range(30):
        client.parts.store.put(_many(number))
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.sendall(b"GET /items:export HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: _seen(client))
        wait_until_in_flight(client)


def _seen(client: Client) -> bool:
    labels = 'method="GET",route="/items:export",status="200"'
    return client.metric(f"http_server_request_duration_seconds_count{{{labels}}}") == 1


def _many(number: int) -> list[Any]:
    from models.item import Item
    from service.rows import Entry

    attributes = {"title": "x" * 4000}
    ids = [f"many{number}-{n}" for n in range(100)]
    return [Entry(Item(item_id=each, attributes=attributes), None, {}) for each in ids]
