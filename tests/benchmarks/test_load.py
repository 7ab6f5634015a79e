"""The load generator tells what a client waited, not what is kind to the server."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from benchmarks.serving.load import BROKEN, fired

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"cached":true}'
LATER = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"
STALL_S = 1.0


class Scripted:
    """Answers each request by what its body says: ok, later or break; one at a time.

    The first request of a stalling one is answered late, and meanwhile nobody else's is.
    """

    def __init__(self, stall_s: float = 0.0) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()
        except OSError:
            return

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(65536):
                with self._lock:
                    time.sleep(self._stall_s)
                    self._stall_s = 0.0
                if b"break" in request:
                    return
                connection.sendall(LATER if b"later" in request else OK)

    def close(self) -> None:
        with suppress(OSError):  # without it who waits in accept would take one more
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


def test_a_stall_shows_in_every_request_that_fell_due_meanwhile() -> None:
    server = Scripted(stall_s=STALL_S)

    shots = fired([("POST", "/", "ok")], server.port, rate=50, seconds=2, repeat=True)

    server.close()
    # Request n was due n / 50 s after the first, and none was answered before the stall's end.
    due = shots.table["due"] - shots.table["due"][0]
    waited = shots.latency_ms / 1000
    assert len(shots) == 100
    assert shots.ok.all()
    assert (waited[due < STALL_S] >= STALL_S - due[due < STALL_S] - 0.01).all()


def test_a_closed_loop_sends_each_request_once(server: Scripted) -> None:
    shots = fired([("POST", "/", "ok")] * 40, server.port, clients=4)

    assert (len(shots), shots.statuses()) == (40, {200: 40})


def test_answers_are_told_apart(server: Scripted) -> None:
    told = ["ok", "later", "break"] * 5

    shots = fired([("POST", "/", each) for each in told], server.port, mark='"cached":true')

    assert shots.table["status"].tolist() == [200, 429, BROKEN] * 5
    assert shots.table["retry_after"].tolist() == [False, True, False] * 5
    assert shots.marked.tolist() == [True, False, False] * 5


def test_a_server_that_is_not_there_answers_nothing() -> None:
    server = Scripted()
    server.close()

    shots = fired([("GET", "/", None)] * 3, server.port, rate=100)

    assert shots.statuses() == {BROKEN: 3}
