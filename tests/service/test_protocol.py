"""What a client may send before its request is known."""

import http.client
import socket
import time

import pytest

from service import protocol
from tests.service.conftest import Serve
from tests.service.running import Client


def connected(client: Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), timeout=10)


def test_a_head_of_any_length_is_not_kept(shared: Client) -> None:
    with connected(shared) as caller:
        caller.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent = 0
        try:
            while sent < 10 * protocol.MOST_HEAD_BYTES:
                sent += caller.send(b"a" * 8192)
                time.sleep(0.001)
        except OSError:
            pass  # closed

        assert sent < 10 * protocol.MOST_HEAD_BYTES
    assert shared.get("/health/live").status_code == 200


def test_a_long_body_behind_a_short_head_is_no_long_head(shared: Client) -> None:
    body = b'{"items": [{"item_id": "x", "attributes": {"title": "' + b"a" * 200_000 + b'"}}]}'

    answer = shared.post("/embed", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 200
    assert answer.json()["results"][0]["truncated"] == ["title"]


@pytest.mark.parametrize("start", [b"", b"GET /health/live HTTP/1.1\r\nHost"])
def test_a_head_that_does_not_come_to_its_end_closes_the_connection(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    client = serve()

    with connected(client) as caller:
        caller.sendall(start)
        assert caller.recv(100) == b""


def test_a_connection_is_used_again_and_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.5)
    client = serve()

    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.connect()
    connection.auto_open = 0  # a closed one is not opened anew
    for _ in range(4):
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
        time.sleep(0.2)
    connection.close()
