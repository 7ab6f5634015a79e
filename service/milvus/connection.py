"""Calls to Milvus: strongly consistent, bounded in time, and errors that a client may be told."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from service.errors import Unreachable
from service.index import Floats
from service.milvus.address import Address
from service.milvus.expressions import KEY
from service.schema import CatalogueError

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # of one call, with its own retries; less than LLMEMB_REQUEST_TIMEOUT_S
STRONG = "Strong"  # who reads sees all that was answered before, by whatever process
TOGETHER = 1000  # rows that are fetched by one call
CHANNEL = {
    # Left alone, gRPC waits up to two minutes before it tries again to reach what was down.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.min_reconnect_backoff_ms": 1000,
    "grpc.max_reconnect_backoff_ms": 2000,
    "grpc.use_local_subchannel_pool": 1,
    # And who pings while nothing is asked is sent away by servers that were not told to bear it.
    "grpc.keepalive_permit_without_calls": 0,
}
AGAIN_S = 0.3  # after a connection that was gone when it was wanted
NOT_CONNECTED = 2  # pymilvus' code of a connection that it could not make anew
NOT_LOADED = 101  # Milvus' code of a collection that it has on the disk alone

VECTORS, SCALARS = "AUTOINDEX", "INVERTED"  # kinds of indexes; the first is Milvus' own choice

Row = dict[str, Any]


class Connection:
    """A client of Milvus. Methods block and may be called from any thread.

    Raises:
        CatalogueError: pymilvus is not installed, or nobody answers.
    """

    def __init__(self, address: Address) -> None:
        try:
            import grpc  # noqa: PLC0415 - comes with the extra
            from pymilvus import MilvusClient, MilvusException  # noqa: PLC0415
        except ImportError:
            raise CatalogueError(
                "LLMEMB_STORE names Milvus, and pymilvus is not installed: install the extra "
                "`milvus`, as in pip install 'llmemb[milvus]'"
            ) from None
        # It logs each failure with a traceback; here each becomes one line.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self._failures = (MilvusException, grpc.RpcError)
        self.where = address.uri
        try:
            self._client = MilvusClient(
                uri=address.uri,
                token=address.token,
                db_name=address.database,
                timeout=TIMEOUT_S,
                grpc_options=CHANNEL,
            )
        except self._failures as error:
            raise CatalogueError(
                f"Milvus at {self.where} cannot be used: {_short(error)}; LLMEMB_STORE says where "
                "it is"
            ) from None

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def call(self, method: str, **arguments: Any) -> Any:  # noqa: ANN401 - pymilvus' own
        """What a method of MilvusClient answers.

        Raises:
            Unreachable: Milvus does not answer, or with an error.
        """
        try:
            return self._tried(method, arguments)
        except self._failures as error:
            log.warning("Milvus at %s: %s: %s", self.where, method, _short(error))
            raise Unreachable(
                "the catalogue's Milvus cannot be reached, or cannot do this; the log says more",
                retry_after_s=2,
            ) from None

    def _tried(self, method: str, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401
        ask = getattr(self._client, method)
        try:
            return ask(**arguments, timeout=TIMEOUT_S)
        except self._failures as error:
            collection, code = arguments.get("collection_name"), getattr(error, "code", None)
            if code == NOT_LOADED and collection:
                self._client.load_collection(collection, timeout=TIMEOUT_S)
            elif code == NOT_CONNECTED:
                time.sleep(AGAIN_S)
            else:
                raise
        return ask(**arguments, timeout=TIMEOUT_S)

    def new_schema(self) -> Any:  # noqa: ANN401 - pymilvus' own
        """A schema to add fields to."""
        return self._client.create_schema(auto_id=False, enable_dynamic_field=False)

    def create(
        self,
        collection: str,
        schema: Any,  # noqa: ANN401 - pymilvus' own
        vectors: Iterable[str],
        indexed: Iterable[str] = (),
    ) -> None:
        """Make a collection, whose vectors are compared by inner product.

        Args:
            vectors: the fields that hold some.
            indexed: other fields that are to have an index, where Milvus has one for them.
        """
        params = self._client.prepare_index_params()
        for field in vectors:
            params.add_index(field_name=field, index_type=VECTORS, metric_type="IP")
        self.call(
            "create_collection",
            collection_name=collection,
            schema=schema,
            index_params=params,
            consistency_level=STRONG,
        )
        for field in indexed:
            params = self._client.prepare_index_params()
            params.add_index(field_name=field, index_type=SCALARS)
            try:
                self.call("create_index", collection_name=collection, index_params=params)
            except Unreachable:  # Milvus Lite has none over arrays
                log.warning("the field %s has no index; filters look at every item", field)

    def rows(
        self,
        collection: str,
        matching: str,
        fields: Sequence[str],
        limit: int | None = None,
    ) -> list[Row]:
        """Rows that fulfil an expression, in no order."""
        limited = {} if limit is None else {"limit": limit}
        found = self.call(
            "query",
            collection_name=collection,
            filter=matching,
            output_fields=list(fields),
            consistency_level=STRONG,
            **limited,
        )
        return list(found)

    def count(self, collection: str, matching: str) -> int:
        """How many rows fulfil an expression."""
        (row,) = self.rows(collection, matching, ["count(*)"])
        return int(row["count(*)"])

    def nearest(
        self, collection: str, field: str, queries: Floats, matching: str, limit: int
    ) -> list[list[str]]:
        """Of each query (B, W) the keys of the rows of largest inner product, best first."""
        found = self.call(
            "search",
            collection_name=collection,
            data=[query.tolist() for query in queries],
            anns_field=field,
            filter=matching,
            limit=limit,
            output_fields=[KEY],
            search_params={"metric_type": "IP", "params": {}},
            consistency_level=STRONG,
        )
        return [[str(hit[KEY]) for hit in hits] for hits in found]

    def upsert(self, collection: str, rows: Iterable[Row]) -> None:
        """Have rows so, whole; a few at a time where there are many."""
        listed = list(rows)
        for start in range(0, len(listed), TOGETHER):
            self.call("upsert", collection_name=collection, data=listed[start : start + TOGETHER])

    def delete(self, collection: str, matching: str) -> None:
        """Take out rows that fulfil an expression."""
        self.call("delete", collection_name=collection, filter=matching, consistency_level=STRONG)


def vector_in(row: Row, field: str) -> Floats:
    """A vector (W,) of a row."""
    return np.array(row[field], np.float32)


def _short(error: Exception) -> str:
    told = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(str(told).split())[:200]
