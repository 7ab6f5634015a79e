"""The service on a real socket: in this process (quick to start) or in one of its own.

And other servers, which it uses, in processes of their own.
"""

import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.protocol import BoundedProtocol
from service.serving import Parts
from service.settings import read_settings

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port below the ones that the system gives to outgoing connections (from 32768)."""
    while True:
        port = random.randint(15_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def wait_until(found: Callable[[], object], longest_s: float = 20) -> None:
    """Ask until something is found."""
    deadline = time.monotonic() + longest_s
    while not found():
        assert time.monotonic() < deadline, f"not within {longest_s:g} s"
        time.sleep(0.005)


def listens(port: int) -> bool:
    """Whether somebody does on this machine."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class Server:
    """Another server on a port of its own, for as long as a block; may be down in between."""

    def __init__(self, port: int, *command: str) -> None:
        self.port = port
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        process = self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def started() -> bool:
            assert process.poll() is None, f"{self._command} has ended"
            return listens(self.port)

        wait_until(started, 120)

    def stop(self) -> None:
        """Kill it."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def wait_for_record(
    caplog: pytest.LogCaptureFixture, message: str, **fields: object
) -> logging.LogRecord:
    """The log record with that message and those fields; a request's follows its answer."""
    deadline = time.monotonic() + 10
    while True:
        for record in list(caplog.records):
            if record.getMessage() == message and fields.items() <= record.__dict__.items():
                return record
        assert time.monotonic() < deadline, [each.__dict__ for each in caplog.records]
        time.sleep(0.01)


class Client(httpx.Client):
    """An HTTP client of one running service, and the app where it runs in this process."""

    def __init__(self, port: int, app: FastAPI | None = None) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        self.port = port
        self._app = app

    @property
    def app(self) -> FastAPI:
        assert self._app
        return self._app

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.serving.parts
        return parts

    def embed(self, *items: dict[str, Any], **fields: object) -> dict[str, Any]:
        answer = self.post("/embed", json={"items": list(items), **fields})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def recommended(self, history: list[str], **fields: object) -> list[tuple[str, float]]:
        answer = self.post("/recommend", json={"history": history, **fields})
        assert answer.status_code == 200, answer.text
        return [(each["item_id"], each["score"]) for each in answer.json()["items"]]

    def metric(self, line: str) -> float:
        text = self.get("/metrics").text
        return float(next(each for each in text.splitlines() if each.startswith(line)).split()[-1])

    def wait_until_ready(
        self, process: "subprocess.Popen[str] | None" = None, longest_s: float = 120
    ) -> None:
        deadline = time.monotonic() + longest_s
        while True:
            try:
                if self.get("/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if process is not None and process.poll() is not None:
                raise AssertionError(process.communicate()[0])
            assert time.monotonic() < deadline, "the service did not become ready"
            time.sleep(0.05)


@contextmanager
def in_this_process(bundle: Path, catalogue: Path, **settings: object) -> Iterator[Client]:
    """The app behind uvicorn in a thread."""
    settings = {"dtype": "float32", **settings}
    app = create_app(read_settings(bundle=bundle, catalogue_dir=catalogue, **settings))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, http=BoundedProtocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with Client(listener.getsockname()[1], app) as client:
            client.wait_until_ready()
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def in_a_process(
    bundle: Path, catalogue: Path, port: int, module: str = "service", **env: str
) -> Iterator["subprocess.Popen[str]"]:
    """`python -m service` in a process of its own, which does not outlive the block."""
    # Few lines: nobody reads the pipe while it runs, and a full pipe would stop it.
    env = {"LLMEMB_DTYPE": "float32", "LLMEMB_LOG_LEVEL": "error", **env}
    arguments = [f"--bundle={bundle}", f"--catalogue={catalogue}", f"--port={port}"]
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
