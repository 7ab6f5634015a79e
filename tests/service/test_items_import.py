"""A file of items: every line that is told is durable, and a break loses nothing before it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.service.conftest import Serve
from tests.service.half_sent import wait_until_in_flight
from tests.service.running import Client, wait_until
from tests.service.test_embed import stalled
from tests.service.test_items_list import lines, walk

JSONL = {"content-type": "application/x-ndjson"}


def line(number: int, **fields: object) -> bytes:
    told = {"item_id": f"i{number}", "attributes": {"title": f"film {number}"}, **fields}
    return json.dumps(told).encode() + b"\n"


def send(
    client: Client, content: bytes | Iterator[bytes], import_id: str = "one", **query: str
) -> httpx.Response:
    return client.post(
        "/items:import", params={"import_id": import_id, **query}, content=content, headers=JSONL
    )


def status(client: Client, import_id: str = "one") -> dict[str, Any]:
    answer = client.get(f"/imports/{import_id}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def imported(client: Client) -> list[str]:
    return [each["item_id"] for each in walk(client, limit=1000) if each["item_id"][0] == "i"]


def test_every_line_becomes_an_item_however_it_is_cut(serve: Serve) -> None:
    client = serve()
    content = b"".join(line(n) for n in range(300)) + b"\n  \n" + line(300)[:-1]

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 997):
            yield content[start : start + 997]

    answer = send(client, pieces())

    assert answer.status_code == 200, answer.text
    assert (
        answer.json()
        == status(client)
        == {
            "import_id": "one",
            "state": "finished",
            "durable_line": 303,
            "created": 301,
            "changed": 0,
            "unchanged": 0,
            "error": None,
        }
    )
    assert imported(client) == [f"i{n}" for n in range(301)]
    assert client.get("/items/i7").json()["attributes"] == {"title": "film 7"}
    assert "i300" in dict(client.recommended(["1"], k=500))


def test_an_export_is_an_import(serve: Serve) -> None:
    first, second = serve("first"), serve("second")
    first.put("/items/new", json={"attributes": {"t": "日本", "n": 1.5}, "hidden": True})
    exported = first.get("/items:export").text

    answer = send(second, exported.encode())

    assert answer.status_code == 200, answer.text
    told = {name: answer.json()[name] for name in ("created", "changed", "unchanged")}
    assert told == {"created": 1, "changed": 0, "unchanged": 12}
    again = lines(second.get("/items:export").text)
    for each in [*again, *(old := lines(exported))]:
        del each["version"]
    assert again == old


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "no JSON": (b'{"item_id": "x",\n', "lines[8]", "at column 17"),
    "NaN": (line(7).replace(b'"film 7"', b"NaN"), "lines[8]", "numbers must be finite"),
    "not UTF-8": (b"\xff\n", "lines[8]", "not UTF-8"),
    "no object": (b"[1]\n", "lines[8]", "must be an object"),
    "no id": (b'{"attributes": {"a": "b"}}\n', "lines[8].item_id", "is missing"),
    "a field too many": (line(7, price=3), "lines[8].price", "is no field here"),
    "a wrong attribute": (
        line(7, attributes={"price": {"a": 1}}),
        "lines[8].attributes.price",
        "must be a string",
    ),
    "an attribute without a name": (
        line(7, attributes={"_": True, "": 1}),
        "lines[8].attributes",
        "an attribute has an empty name",
    ),
    "blank without end": (b" " * 5000 + line(7), "lines[8]", "longer than 4000 bytes"),
    "too long": (line(7, attributes={"title": "x" * 5000}), "lines[8]", "longer than 4000 bytes"),
    "endless": (b"x" * 100_000, "lines[8]", "longer than 4000 bytes"),
    "a vector too short": (line(7, vectors={"text": [1.0]}), "lines[8].vectors.text", "8 numbers"),
}


@pytest.mark.parametrize(("broken", "field", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_is_told_and_all_before_it_is_kept(
    serve: Serve, broken: bytes, field: str, reason: str
) -> None:
    client = serve(max_body_bytes=4000)
    bundle = client.get("/info").json()["bundle"]
    before = b"".join(line(n) for n in range(7))
    after = b"".join(line(n) for n in range(8, 12))

    answer = send(client, before + broken + after, bundle=bundle)

    problem = answer.json()
    assert answer.status_code == 422, answer.text
    assert problem["errors"][0]["field"] == field
    assert reason in problem["errors"][0]["message"]
    assert "line 8 is the first that is wrong, and the 7 before it are stored" in problem["detail"]
    told = status(client)
    assert (told["state"], told["durable_line"], told["created"]) == ("broken", 7, 7)
    assert told["error"]
    assert imported(client) == [f"i{n}" for n in range(7)]

    mended = send(client, before + line(7) + after, bundle=bundle)

    assert mended.status_code == 200
    assert (mended.json()["state"], mended.json()["created"]) == ("finished", 12)
    assert imported(client) == [f"i{n}" for n in range(12)]


def test_lines_that_are_stored_are_passed_over_when_the_same_import_comes_again(
    serve: Serve,
) -> None:
    client = serve()
    content = b"".join(line(n) for n in range(20))
    send(client, content)
    client.delete("/items/i3")

    same = send(client, content + line(20))
    other = send(client, content, import_id="two")

    assert (same.json()["created"], same.json()["durable_line"]) == (21, 21)
    assert (other.json()["created"], other.json()["unchanged"]) == (1, 19)


def test_an_import_is_larger_than_a_body_may_be_and_takes_longer_than_a_request_may(
    serve: Serve,
) -> None:
    client = serve(max_body_bytes=2000, max_inflight_bytes=2000, request_timeout_s=1)

    def slowly() -> Iterator[bytes]:
        for number in range(100):
            yield line(number)
            time.sleep(0.02)

    answer = send(client, slowly())

    assert answer.status_code == 200, answer.text
    assert answer.json()["durable_line"] == 100
    refused = client.post(
        "/embed", content=b" " * 2001, headers={"content-type": "application/json"}
    )
    assert refused.status_code == 413


def test_a_client_that_sends_nothing_is_left_and_its_lines_are_kept(serve: Serve) -> None:
    client = serve(request_timeout_s=0.3)
    connection = begun(client, [line(0), line(1), line(2)[:10]])

    answer = connection.getresponse()
    problem = json.loads(answer.read())
    connection.close()

    assert answer.status == 504
    assert "nothing came for 0.3 s" in problem["detail"]
    told = status(client)
    assert (told["state"], told["durable_line"]) == ("stopped", 2)
    assert imported(client) == ["i0", "i1"]


def begun(
    client: Client, pieces: Sequence[bytes], import_id: str = "one"
) -> http.client.HTTPConnection:
    """An import of which some has come, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.putrequest("POST", f"/items:import?import_id={import_id}")
    connection.putheader("content-type", JSONL["content-type"])
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    for piece in pieces:
        connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    return connection


def wait_for_line(client: Client, number: int, import_id: str = "one") -> None:
    def come_so_far() -> bool:
        told = client.get(f"/imports/{import_id}").json()
        return (told.get("durable_line") or 0) >= number

    wait_until(come_so_far)


def test_lines_are_durable_while_the_next_are_still_to_come(serve: Serve) -> None:
    client = serve()
    connection = begun(client, [line(0), line(1)])

    wait_for_line(client, 2)
    running = status(client)
    twice = send(client, line(0))
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    answer.read()
    connection.close()

    assert running["state"] == "running"
    assert (twice.status_code, twice.json()["type"]) == (409, "urn:llmemb:import-running")
    assert int(twice.headers["retry-after"]) >= 1
    assert answer.status == 200
    assert status(client)["state"] == "finished"


def test_a_client_that_leaves_can_go_on_where_it_was(serve: Serve) -> None:
    client = serve()
    connection = begun(client, [line(0), line(1)])
    wait_for_line(client, 2)
    connection.close()
    wait_until(lambda: status(client)["state"] != "running")

    answer = send(client, b"".join(line(n) for n in range(4)))

    assert (answer.json()["created"], answer.json()["durable_line"]) == (4, 4)
    wait_until_in_flight(client)


def test_no_more_than_a_few_imports_run_at_once(serve: Serve) -> None:
    client = serve()
    connections = [begun(client, [line(n)], f"import{n}") for n in range(4)]
    for number in range(4):
        wait_for_line(client, 1, f"import{number}")

    refused = send(client, line(9), import_id="fifth")

    for connection in connections:
        connection.close()
    assert refused.status_code == 429
    assert client.get("/imports/fifth").status_code == 404


def test_a_client_is_read_no_faster_than_its_lines_are_stored(serve: Serve) -> None:
    client = serve()
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for number in range(40_000):
            yield line(number, attributes={"title": "x" * 1000})
            sent += 1

    def start() -> None:
        with suppress(httpx.TransportError):  # the service stops
            send(client, pieces())

    def stands_still() -> bool:
        before = sent
        time.sleep(1)
        return 0 < before == sent

    with stalled(client):
        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        wait_until(stands_still, 60)
        status(client)  # others are served
        client.app.state.serving.drain()
    thread.join(20)

    assert sent < 20_000  # of 40 MB no more than sockets and a chunk hold
    assert not thread.is_alive()


def test_an_import_waits_for_the_llm_where_others_are_refused(serve: Serve) -> None:
    client = serve(max_queue_tokens=64)
    long = {"item_id": "x", "attributes": {"title": "x" * 100}}

    with ThreadPoolExecutor(1) as pool:
        with stalled(client):
            waiting = pool.submit(send, client, b"".join(line(n) for n in range(60)))
            wait_until(lambda: client.metric("llmemb_queue_tokens") >= 64)
            refused = client.post("/embed", json={"items": [long]})
            assert not waiting.done()
        answer = waiting.result(30)

    assert refused.status_code == 429
    assert answer.status_code == 200, answer.text
    assert answer.json()["created"] == 60


def test_vectors_of_a_file_belong_to_a_bundle_that_is_told(serve: Serve) -> None:
    client = serve()
    bundle = client.get("/info").json()["bundle"]
    given = line(1, vectors={"text": [1.0] * 8})

    other = send(client, line(0) + given, bundle="f" * 64)
    untold = send(client, line(0) + given)
    right = send(client, line(0) + given, bundle=bundle)

    assert (other.status_code, other.json()["type"]) == (409, "urn:llmemb:bundle-mismatch")
    assert (untold.status_code, untold.json()["errors"][0]["field"]) == (422, "bundle")
    assert "line 2 is the first that is wrong" in untold.json()["detail"]
    assert right.status_code == 200
    views = client.parts.store.snapshot.views("i1")
    assert views
    assert views["text"].tolist() == [1.0] * 8


def test_of_an_id_that_comes_twice_the_later_line_stays(serve: Serve) -> None:
    client = serve()

    answer = send(client, line(0) + line(0, attributes={"title": "later"}))

    assert (answer.json()["created"], answer.json()["changed"]) == (1, 1)
    assert client.get("/items/i0").json()["attributes"] == {"title": "later"}


def test_an_empty_file_is_an_import_of_nothing(serve: Serve) -> None:
    answer = send(serve(), b"")

    assert (answer.status_code, answer.json()["durable_line"]) == (200, 0)
    assert answer.json()["state"] == "finished"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "import_id"),
        ({"import_id": ""}, "import_id"),
        ({"import_id": "a/b"}, "import_id"),
        ({"import_id": "x" * 129}, "import_id"),
        ({"import_id": "a", "chunk": "3"}, "chunk"),
    ],
)
def test_an_import_needs_an_id_that_can_be_asked_for(
    shared: Client, query: dict[str, str], field: str
) -> None:
    answer = shared.post("/items:import", params=query, content=b"", headers=JSONL)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_an_import_that_nobody_began_is_a_404(shared: Client) -> None:
    assert shared.get("/imports/nobody").status_code == 404
    assert shared.get("/imports/a%20b").status_code == 422


def test_a_file_of_another_type_is_a_415(shared: Client) -> None:
    answer = shared.post(
        "/items:import",
        params={"import_id": "a"},
        content=b"",
        headers={"content-type": "text/csv"},
    )

    assert answer.status_code == 415
    assert "send application/x-ndjson" in answer.json()["detail"]
