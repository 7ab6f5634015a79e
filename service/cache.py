"""LLM vectors by prompt: in Redis, or in this process. A cache may forget, never fail."""

import asyncio
import hashlib
import json
import logging
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.batcher import LLMVector
from service.metrics import Metrics

log = logging.getLogger(__name__)

VERSION = 1
HEADER = struct.Struct("<BIII")  # version, dimension, tokens, bytes of the cut attributes' JSON
CHECKSUM = struct.Struct("<I")
FAILURES = 3  # in a row, that open the circuit
OPEN_S = 2.0  # how long nothing is asked before one request probes again


def cache_key(encoder_hash: str, text: str) -> str:
    """The key of a prompt's LLM vector; every fact that changes the vector is in it."""
    return f"llmemb:{VERSION}:{encoder_hash}:{hashlib.sha256(text.encode()).hexdigest()}"


def pack(value: LLMVector) -> bytes:
    """A value as bytes, checksum last."""
    cut = json.dumps(value.cut).encode()
    body = (
        HEADER.pack(VERSION, len(value.vector), value.tokens, len(cut))
        + cut
        + value.vector.astype("<f4").tobytes()
    )
    return body + CHECKSUM.pack(zlib.crc32(body))


def unpack(stored: bytes, dim: int) -> LLMVector | None:
    """The value in such bytes; None if they are damaged or of another dimension."""
    body = stored[: -CHECKSUM.size]
    if len(body) < HEADER.size or stored[-CHECKSUM.size :] != CHECKSUM.pack(zlib.crc32(body)):
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

    async def get_many(self, keys: Sequence[str]) -> list[LLMVector | None]:
        """Of each key its value, or None."""
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

    async def get_many(self, keys: Sequence[str]) -> list[LLMVector | None]:
        """Of each key its value, or None."""
        found = [self._values.get(key) for key in keys]
        for key, value in zip(keys, found, strict=True):
            self._metrics.cache.labels("miss" if value is None else "hit").inc()
            if value is not None:
                self._values.move_to_end(key)
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


class RedisCache:
    """Values in Redis: one MGET and one pipeline a request, short timeouts, no retries.

    Any failure is a miss. After FAILURES in a row the circuit opens: for OPEN_S nothing is
    asked, then one request probes, while the others still miss at once.

    Args:
        dim: width of the vectors; a value of another width is a miss.
    """

    def __init__(self, url: str, timeout_s: float, ttl_s: int, dim: int, metrics: Metrics) -> None:
        self._redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._dim = dim
        self._metrics = metrics
        self._failures = 0
        self._probe_at = 0.0

    @property
    def degraded(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def _may_ask(self) -> bool:
        if self._failures < FAILURES:
            return True
        if time.monotonic() < self._probe_at:
            return False
        self._probe_at = time.monotonic() + OPEN_S  # this one probes; the others wait for it
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            log.warning("redis fails (%s); serving without it", type(error).__name__)
        if self._failures >= FAILURES:
            self._probe_at = time.monotonic() + OPEN_S

    def _worked(self) -> None:
        if self._failures >= FAILURES:
            log.warning("redis answers again")
        self._failures = 0

    async def get_many(self, keys: Sequence[str]) -> list[LLMVector | None]:
        """Of each key its value, or None."""
        stored: list[bytes | str | None] = [None] * len(keys)
        failed = True
        if keys and self._may_ask():
            try:
                async with asyncio.timeout(self._timeout_s):
                    stored = list(await self._redis.mget(keys))
                self._worked()
                failed = False
            except (RedisError, OSError, ValueError, TimeoutError) as error:
                self._failed(error)
        found = []
        for value in stored:
            unpacked = unpack(value, self._dim) if isinstance(value, bytes) else None
            bad = failed or (value is not None and unpacked is None)
            result = "error" if bad else "miss" if unpacked is None else "hit"
            self._metrics.cache.labels(result).inc()
            found.append(unpacked)
        return found

    async def put_many(self, values: Mapping[str, LLMVector]) -> None:
        """Keep values, if possible."""
        if not values or not self._may_ask():
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                pipeline = self._redis.pipeline(transaction=False)
                for key, value in values.items():
                    pipeline.set(key, pack(value), ex=self._ttl_s)
                await pipeline.execute()
            self._worked()
        except (RedisError, OSError, ValueError, TimeoutError) as error:
            self._failed(error)

    async def check(self) -> None:
        """Ask Redis whether it is there, unless the circuit is open."""
        if not self._may_ask():
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.get("llmemb:probe")
            self._worked()
        except (RedisError, OSError, ValueError, TimeoutError) as error:
            self._failed(error)

    async def close(self) -> None:
        """Let connections go."""
        try:
            await self._redis.aclose()
        except (RedisError, OSError):
            log.debug("redis connection did not close cleanly", exc_info=True)
