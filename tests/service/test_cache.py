import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.connection import SSLConnection

from service import cache as module
from service.batcher import LLMVector
from service.cache import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    Circuit,
    MemoryCache,
    RedisCache,
    cache_key,
    pack,
    unpack,
)
from service.metrics import Metrics
from service.redis_urls import connect
from tests.service.conftest import RedisServer, Serve
from tests.service.running import free_port
from tests.tiny import films

FILM = films(1)[0].model_dump()
UNANSWERED = ("error", "bypass")
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
    async def use() -> set[str]:
        cache = MemoryCache(2, Metrics())
        await cache.put_many({"a": VALUE, "b": VALUE})
        await cache.get_many(["a"])
        await cache.put_many({"c": VALUE})
        return set(await cache.get_many(["a", "b", "c"]))

    assert asyncio.run(use()) == {"a", "c"}


def test_without_redis_everything_is_answered_and_readiness_says_so(serve: Serve) -> None:
    client = serve(redis_url=f"redis://127.0.0.1:{free_port()}")

    results = [client.embed(FILM)["results"][0] for _ in range(3)]

    assert [each["cached"] for each in results] == [False, False, False]
    asked = [client.metric(f'llmemb_cache_requests_total{{result="{r}"}}') for r in UNANSWERED]
    assert sum(asked) == 3
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


def test_the_circuit_opens_after_failures_and_one_probe_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "OPEN_S", 0.05)
    metrics = Metrics()
    circuit = Circuit(metrics)
    for _ in range(2):
        assert circuit.admits()
        circuit.failed(OSError())
    assert circuit.state == CLOSED
    assert circuit.admits()
    circuit.failed(OSError())

    assert (circuit.state, circuit.admits()) == (OPEN, False)
    assert metrics.circuit._value.get() == OPEN
    time.sleep(0.06)
    assert [circuit.admits(), circuit.admits()] == [True, False]  # one probes, others do not wait
    assert metrics.circuit._value.get() == HALF_OPEN
    circuit.failed(OSError())
    assert (circuit.state, circuit.admits()) == (OPEN, False)
    time.sleep(0.06)
    assert circuit.admits()
    circuit.left()  # the probing client hung up: the next one may
    assert circuit.admits()
    circuit.worked()
    assert (circuit.state, circuit.failing, circuit.admits()) == (CLOSED, False, True)


def test_values_written_together_do_not_expire_together(
    serve: Serve, redis_server: RedisServer
) -> None:
    client = serve(redis_url=redis_server.url, redis_timeout_s=1, cache_ttl_s=1000)
    client.embed(*(film.model_dump() for film in films(12)))

    with redis.Redis(port=redis_server.port) as direct:
        lifetimes = {direct.ttl(key) for key in direct.keys("llmemb:1:*")}
    assert len(lifetimes) > 3
    assert min(lifetimes) >= 898
    assert max(lifetimes) <= 1100


def test_while_the_circuit_is_open_redis_is_bypassed(serve: Serve) -> None:
    client = serve(redis_url=f"redis://127.0.0.1:{free_port()}")
    for _ in range(5):
        client.embed(FILM)

    asked = [client.metric(f'llmemb_cache_requests_total{{result="{r}"}}') for r in UNANSWERED]
    assert asked == [2, 3]  # readiness had asked before, so that the second failed as the third
    assert client.metric("llmemb_cache_circuit_state") == OPEN


def test_sentinel_names_the_server(serve: Serve, redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.sentinel(tmp_path, "cache") as port:
        client = serve(
            redis_url=f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/cache/0",
            redis_timeout_s=1,
        )
        found = [client.embed(FILM)["results"][0]["cached"] for _ in range(2)]

    assert found == [False, True]


def test_a_cluster_keeps_values_too(serve: Serve, tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as server:
        server.take_all_slots()
        client = serve(redis_url=f"redis+cluster://127.0.0.1:{server.port}", redis_timeout_s=1)
        both = [film.model_dump() for film in films(2)]
        found = [[each["cached"] for each in client.embed(*both)["results"]] for _ in range(2)]

    assert found == [[False, False], [True, True]]


@pytest.mark.parametrize("scheme", ["redis+cluster", "redis+sentinel"])
def test_without_any_node_everything_is_answered(serve: Serve, scheme: str) -> None:
    client = serve(redis_url=f"{scheme}://127.0.0.1:{free_port()}/cache")

    assert [client.embed(FILM)["results"][0]["cached"] for _ in range(4)] == [False] * 4
    assert client.get("/health/ready").json()["degraded"] == ["cache"]
    assert client.metric("llmemb_cache_circuit_state") == OPEN


def looked_up(server: RedisServer, count: int, meanwhile: Callable[[], None]) -> list[int]:
    """How many values each of some look-ups at once finds of one that is there."""

    async def work() -> list[int]:
        cache = RedisCache(server.url, 10.0, 1000, 4, Metrics())
        await cache.put_many({"key": VALUE})
        await asyncio.gather(*(cache.get_many(["key"]) for _ in range(8)))
        meanwhile()
        await asyncio.sleep(0.1)
        found = await asyncio.gather(*(cache.get_many(["key"]) for _ in range(count)))
        await cache.close()
        return [len(each) for each in found]

    return asyncio.run(work())


def test_as_many_look_ups_as_requests_are_let_in_find_a_connection(
    redis_server: RedisServer,
) -> None:
    assert looked_up(redis_server, 256, lambda: None) == [1] * 256


def test_connections_that_were_closed_meanwhile_are_no_failures(redis_server: RedisServer) -> None:
    def kill() -> None:
        with redis.Redis(port=redis_server.port) as direct:
            direct.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert looked_up(redis_server, 8, kill) == [1] * 8


def test_a_tls_address_is_asked_over_tls() -> None:
    client = connect("rediss://user:secret@host:6380/1", 0.1)

    pool = client.connection_pool  # type: ignore[attr-defined]
    assert pool.connection_class is SSLConnection
    assert pool.connection_kwargs["port"] == 6380


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host", "must begin with one of redis://"),
        ("redis://", "names no host"),
        ("redis://host:port", "the port 'port' is no number"),
        ("redis+sentinel://host", "must name Sentinel's service"),
        ("redis+sentinel://host/name/x", "the database is 'x'"),
    ],
)
def test_an_address_that_is_none_is_told(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        connect(url, 0.1)


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
    assert client.metric('llmemb_cache_requests_total{result="corrupt"}') == 1
    np.testing.assert_allclose(again["vectors"]["text"], miss["vectors"]["text"], atol=1e-6)
