"""Milvus Lite as a server of its own on loopback: a Milvus for tests, in Python."""

import sys
from pathlib import Path
from typing import Any

from service.milvus.connection import CHANNEL
from tests.service.running import Server, free_port


class MilvusServer(Server):
    """One on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        listening = ("--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port))
        super().__init__(port, sys.executable, "-m", "milvus_lite", "server", *listening)
        self.url = f"milvus+http://127.0.0.1:{port}"

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
