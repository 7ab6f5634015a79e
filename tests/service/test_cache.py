import asyncio
import time

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from service import cache as module
from service.batcher import LLMVector
from service.cache import MemoryCache, cache_key, pack, unpack
from service.metrics import Metrics
from tests.service.conftest import RedisServer, Serve
from tests.service.running import free_port
from tests.tiny import films

FILM = films(1)[0].model_dump()
VALUE = LLMVector(np.arange(4, dtype=np.float32), 7, ("plot", "日本"))


def test_a_value_survives_packing() -> None:
    found = unpack(pack(VALUE), 4)

    assert found is not None
    np.testing.assert_array_equal(found.vector, VALUE.vector)
    assert (found.tokens, found.cut) == (7, ("plot", "日本"))


def test_a_value_of_another_dimension_is_none() -> None:
    assert unpack(pack(VALUE), 5) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_value_is_none(data: st.DataObject) -> None:
    whole = pack(VALUE)
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))

    assert unpack(bytes(flipped), 4) is None
    assert unpack(whole[:position], 4) is None


@given(st.binary(max_size=64))
def test_garbage_is_none(garbage: bytes) -> None:
    assert unpack(garbage, 4) is None


def test_the_key_changes_with_the_encoder_and_the_text() -> None:
    keys = {cache_key(encoder, text) for encoder in ("e", "f") for text in ("a", "b")}

    assert len(keys) == 4
    assert all(key.startswith("llmemb:1:") for key in keys)


def test_memory_keeps_what_was_used_last() -> None:
    async def use() -> list[LLMVector | None]:
        cache = MemoryCache(2, Metrics())
        await cache.put_many({"a": VALUE, "b": VALUE})
        await cache.get_many(["a"])
        await cache.put_many({"c": VALUE})
        return await cache.get_many(["a", "b", "c"])

    a, b, c = asyncio.run(use())

    assert (a is not None, b is not None, c is not None) == (True, False, True)


def test_without_redis_everything_is_answered_and_readiness_says_so(serve: Serve) -> None:
    client = serve(redis_url=f"redis://127.0.0.1:{free_port()}")

    results = [client.embed(FILM)["results"][0] for _ in range(3)]

    assert [each["cached"] for each in results] == [False, False, False]
    assert client.metric('llmemb_cache_requests_total{result="error"}') == 3
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["cache"])
    assert client.post("/recommend", json={"history": ["1"], "k": 1}).json()["degraded"] == [
        "cache"
    ]


def test_a_redis_that_never_answers_costs_little(serve: Serve) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        client = serve(redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(4):
            client.embed(FILM)
        started = time.perf_counter()
        client.embed(FILM)  # the circuit is open
        assert time.perf_counter() - started < 1


def test_redis_may_die_and_come_back(
    serve: Serve, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_S", 0.1)
    client = serve(redis_url=redis_server.url, redis_timeout_s=1)
    client.embed(FILM)
    assert client.embed(FILM)["results"][0]["cached"]

    redis_server.stop()
    for _ in range(4):
        assert not client.embed(FILM)["results"][0]["cached"]
    assert client.get("/health/ready").json()["degraded"] == ["cache"]

    redis_server.start()
    time.sleep(0.2)
    client.embed(FILM)
    assert client.embed(FILM)["results"][0]["cached"]
    assert client.get("/health/ready").json()["degraded"] == []


def test_garbage_in_redis_is_a_miss_and_is_replaced(
    serve: Serve, redis_server: RedisServer
) -> None:
    client = serve(redis_url=redis_server.url, redis_timeout_s=1)
    (miss,) = client.embed(FILM)["results"]
    with redis.Redis(port=redis_server.port) as direct:
        (key,) = direct.keys("llmemb:1:*")
        assert direct.ttl(key) > 0
        direct.set(key, b"garbage")
        (again,) = client.embed(FILM)["results"]
        direct.delete(key)
        direct.lpush(key, "a list")  # of the wrong type
        (third,) = client.embed(FILM)["results"]
        direct.delete(key)

    assert (again["cached"], third["cached"]) == (False, False)
    np.testing.assert_allclose(again["vectors"]["text"], miss["vectors"]["text"], atol=1e-6)
