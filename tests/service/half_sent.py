"""A request of which the body has come in part, on a socket of its own: it stays in flight."""

import json
import socket
from contextlib import suppress
from http.client import HTTPResponse
from types import TracebackType
from typing import Any

from tests.service.running import Client, wait_until

HISTORY = json.dumps({"history": ["1"], "k": 3}).encode()


class HalfSent:
    """POST /recommend, all but its last byte; `finish` sends that and reads the answer.

    Args:
        declared: whether it says how long the body is; else it comes in chunks.
        filler: blanks before the JSON's end, which change nothing but its length.
        header: one more line of the head.
    """

    def __init__(
        self, port: int, *, declared: bool = True, filler: int = 0, header: str = "X-Nothing: 1"
    ) -> None:
        self._body = HISTORY[:-1] + b" " * filler + HISTORY[-1:]
        self._declared = declared
        length = f"Content-Length: {len(self._body)}" if declared else "Transfer-Encoding: chunked"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(
            "POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"{header}\r\n{length}\r\n\r\n".encode()
        )
        with suppress(ConnectionError):  # as when the answer was there before the body
            self._send(self._body[:-1])

    def __enter__(self) -> "HalfSent":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def _send(self, data: bytes) -> None:
        framed = data if self._declared else b"%x\r\n%s\r\n" % (len(data), data)
        self.socket.sendall(framed)

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer."""
        self._send(self._body[-1:])
        if not self._declared:
            self.socket.sendall(b"0\r\n\r\n")
        return self.answer()

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and body of an answer that comes without the rest."""
        response = HTTPResponse(self.socket)
        response.begin()
        return response.status, json.loads(response.read())


def wait_until_in_flight(client: Client, *, requests: int = 0, least_bytes: int = 0) -> None:
    """Until the service has seen that much of what was sent."""
    admission = client.app.state.admission
    wait_until(lambda: admission.requests == requests and admission.bytes >= least_bytes)
