"""LLM vectors by prompt: in Redis, or in this process. A cache may forget, never fail."""

import asyncio
import hashlib
import json
import logging
import random
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import numpy as np

from service.batcher import LLMVector
from service.metrics import Metrics
from service.redis_urls import RedisClient, connect
from service.seal import seal, unseal

log = logging.getLogger(__name__)

VERSION = 1
HEADER = struct.Struct("<BIII")  # version, dimension, tokens, bytes of the cut attributes' JSON
FAILURES = 3  # in a row, that open the circuit
OPEN_S = 2.0  # how long nothing is asked before one request probes again
JITTER = 0.1  # of a lifetime, so that what was written together does not expire together
CLOSED, HALF_OPEN, OPEN = 0, 1, 2
PROBE = "llmemb:probe"
T = TypeVar("T")


def cache_key(encoder_hash: str, text: str) -> str:
    """The key of a prompt's LLM vector; every fact that changes the vector is in it."""
    return f"llmemb:{VERSION}:{encoder_hash}:{hashlib.sha256(text.encode()).hexdigest()}"


def pack(value: LLMVector) -> bytes:
    """A value as bytes, checksum last."""
    cut = json.dumps(value.cut).encode()
    return seal(
        HEADER.pack(VERSION, len(value.vector), value.tokens, len(cut))
        + cut
        + value.vector.astype("<f4").tobytes()
    )


def unpack(stored: bytes, dim: int) -> LLMVector | None:
    """The value in such bytes; None if they are damaged or of another dimension."""
    body = unseal(stored)
    if body is None or len(body) < HEADER.size:
        return None
    version, found, tokens, length = HEADER.unpack_from(body)
    start = HEADER.size + length
    if version != VERSION or found != dim or len(body) != start + 4 * dim:
        return None
    vector = np.frombuffer(body, "<f4", offset=start).astype(np.float32)
    try:
        cut = json.loads(body[HEADER.size : start])
    except ValueError:
        return None
    return LLMVector(vector, tokens, tuple(cut)) if np.isfinite(vector).all() else None


class Cache(Protocol):
    """Values by key."""

    @property
    def degraded(self) -> bool:
        """Whether it cannot be reached."""
        ...

    async def get_many(self, keys: list[str]) -> dict[str, LLMVector]:
        """The values that it has."""
        ...

    async def put_many(self, values: Mapping[str, LLMVector]) -> None:
        """Keep values, if possible."""
        ...

    async def check(self) -> None:
        """Find out whether it can be reached."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


class MemoryCache:
    """The values last used, in this process.

    Args:
        size: how many.
    """

    degraded = False

    def __init__(self, size: int, metrics: Metrics) -> None:
        self._size = size
        self._metrics = metrics
        self._values: OrderedDict[str, LLMVector] = OrderedDict()

    async def get_many(self, keys: list[str]) -> dict[str, LLMVector]:
        """The values that it has."""
        found = {key: value for key in keys if (value := self._values.get(key))}
        for key in found:
            self._values.move_to_end(key)
        self._metrics.cache.labels("hit").inc(len(found))
        self._metrics.cache.labels("miss").inc(len(keys) - len(found))
        return found

    async def put_many(self, values: Mapping[str, LLMVector]) -> None:
        """Keep values; the least recently used make room."""
        for key, value in values.items():
            self._values[key] = value
            self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    async def check(self) -> None:
        """Nothing to find out."""

    async def close(self) -> None:
        """Nothing to let go."""


class Circuit:
    """Whether to ask somebody who has failed: not for a while, then one caller at a time.

    Closed until FAILURES in a row; then open for OPEN_S; then half open: one probe, and the
    others do not wait for it. Its answer closes the circuit, its failure opens it again.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failures = 0
        self._opened = 0.0
        self._probing = False
        self._show()

    @property
    def failing(self) -> bool:
        """Whether the last that was heard was a failure."""
        return self._failures > 0

    @property
    def state(self) -> int:
        """CLOSED, HALF_OPEN or OPEN."""
        if self._failures < FAILURES:
            return CLOSED
        waited = time.monotonic() - self._opened >= OPEN_S
        return HALF_OPEN if self._probing or waited else OPEN

    def admits(self) -> bool:
        """Whether this caller may ask; whoever may has to say `worked` or `failed`."""
        state = self.state
        self._show()
        if state == CLOSED:
            return True
        if state == OPEN or self._probing:
            return False
        self._probing = True
        return True

    def worked(self) -> None:
        """The other side answered."""
        if self._failures >= FAILURES:
            log.warning("redis answers again")
        self._failures, self._probing = 0, False
        self._show()

    def failed(self, error: BaseException) -> None:
        """The other side did not answer, or not sensibly."""
        self._failures += 1
        if self._failures == FAILURES:
            log.warning("redis fails (%s); serving without it", type(error).__name__)
        self._opened, self._probing = time.monotonic(), False
        self._show()

    def left(self) -> None:
        """The caller went away before there was an answer; nothing was learnt."""
        self._probing = False

    def _show(self) -> None:
        self._metrics.circuit.set(self.state)


class RedisCache:
    """Values in Redis: one MGET and one pipeline a request, short timeouts, no retries.

    Any failure is a miss, and after FAILURES in a row Redis is asked now and then only; see
    Circuit. A request that waited for Redis in vain does not wait a second time to write.

    Args:
        url: as service.redis_urls.connect takes it.
        ttl_s: lifetime of a value, give or take JITTER.
        dim: width of the vectors; a value of another width is a miss.
    """

    def __init__(self, url: str, timeout_s: float, ttl_s: int, dim: int, metrics: Metrics) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._dim = dim
        self._metrics = metrics
        self._circuit = Circuit(metrics)
        self._client: RedisClient | None = None

    @property
    def degraded(self) -> bool:
        """Whether the last attempt failed."""
        return self._circuit.failing

    async def _ask(self, question: Callable[[RedisClient], Awaitable[T]]) -> T | None:
        """What Redis answers in time to somebody whom the circuit has let through, or None."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._client is None:
                    self._client = connect(self._url, self._timeout_s)
                answer = await question(self._client)
        except Exception as error:
            # Not Redis' own errors alone: a cluster's are no RedisError, and garbage makes a parser
            # raise anything.
            self._circuit.failed(error)
            return None
        except BaseException:
            self._circuit.left()
            raise
        self._circuit.worked()
        return answer

    async def get_many(self, keys: list[str]) -> dict[str, LLMVector]:
        """The values that it has."""
        if not keys:
            return {}
        count = self._metrics.cache
        if not self._circuit.admits():
            count.labels("bypass").inc(len(keys))
            return {}

        async def read(client: RedisClient) -> list[object]:
            answer = await client.mget(keys)
            if len(answer) != len(keys):
                raise ValueError(f"{len(answer)} values for {len(keys)} keys")
            return answer

        stored = await self._ask(read)
        if stored is None:
            count.labels("error").inc(len(keys))
            return {}
        found: dict[str, LLMVector] = {}
        corrupt = 0
        for key, value in zip(keys, stored, strict=True):
            unpacked = unpack(value, self._dim) if isinstance(value, bytes) else None
            if unpacked is not None:
                found[key] = unpacked
            corrupt += value is not None and unpacked is None
        count.labels("hit").inc(len(found))
        count.labels("corrupt").inc(corrupt)
        count.labels("miss").inc(len(keys) - len(found) - corrupt)
        return found

    async def put_many(self, values: Mapping[str, LLMVector]) -> None:
        """Keep values, if possible."""
        if not values or self._circuit.failing or not self._circuit.admits():
            return

        async def write(client: RedisClient) -> None:
            pipeline = client.pipeline(transaction=False)
            for key, value in values.items():
                spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
                pipeline.set(key, pack(value), px=max(1, int(1000 * self._ttl_s * spread)))
            await pipeline.execute()

        await self._ask(write)

    async def check(self) -> None:
        """Ask Redis whether it is there, unless the circuit is open."""
        if self._circuit.admits():
            await self._ask(lambda client: client.get(PROBE))

    async def close(self) -> None:
        """Let connections go."""
        if self._client is None:
            return
        try:
            await self._client.aclose()
        except Exception:
            log.debug("redis connection did not close cleanly", exc_info=True)
