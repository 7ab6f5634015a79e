"""Milvus Lite as a server of its own on loopback: a Milvus for tests, in Python."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.milvus.connection import CHANNEL
from tests.service.running import free_port


class MilvusServer:
    """One on a port and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"milvus+http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def of(cls, folder: Path) -> Iterator["MilvusServer"]:
        """One that runs as long as the block."""
        server = cls(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self._folder)),
                *("--host", "127.0.0.1", "--port", str(self.port)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert self._process.poll() is None, "milvus-lite has ended"
                assert time.monotonic() < deadline, "milvus-lite did not start"
                time.sleep(0.1)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Any:  # noqa: ANN401
        """One of its clients."""
        from pymilvus import MilvusClient

        return MilvusClient(uri=self.url.removeprefix("milvus+"), grpc_options=CHANNEL)

    def collections(self) -> list[str]:
        """Names of all collections."""
        client = self.client()
        names = sorted(client.list_collections())
        client.close()
        return names

    def clear(self) -> None:
        """Take out all that is there."""
        client = self.client()
        for alias in client.list_aliases(collection_name="")["aliases"]:
            client.drop_alias(alias=alias)
        for name in client.list_collections():
            client.drop_collection(collection_name=name)
        client.close()
