import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pytest

from models.bundle import Bundle
from tests.service.conftest import RedisServer, Serve
from tests.service.running import Client
from tests.tiny import films

FILMS = [film.model_dump() for film in films(12)]
LONG = {"item_id": "long", "attributes": {"title": "Ran", "plot": "a" * 300, "zone": "b" * 300}}


def test_an_exported_item_gets_its_exported_vectors(shared: Client, bundle: Bundle) -> None:
    answer = shared.embed(*FILMS)

    tables = bundle.training_views()
    for film, result in zip(FILMS, answer["results"], strict=True):
        row = bundle.catalogue.rows[film["item_id"]] - 1
        assert result["item_id"] == film["item_id"]
        expected = {name for name, (_, present) in tables.items() if present[row]}
        assert set(result["vectors"]) == expected
        for name in expected:
            np.testing.assert_allclose(result["vectors"][name], tables[name][0][row], atol=1e-5)
    assert answer["bundle"] == bundle.bundle_hash
    assert answer["encoder"] == bundle.encoder_hash


def test_a_batch_equals_its_singles(serve: Serve) -> None:
    client = serve(cache_items=0)

    together = client.embed(*FILMS)["results"]

    for film, result in zip(FILMS, together, strict=True):
        (alone,) = client.embed(film)["results"]
        np.testing.assert_allclose(alone["vectors"]["text"], result["vectors"]["text"], atol=1e-5)
        assert alone["tokens"] == result["tokens"]


def test_concurrent_requests_get_their_own_vectors(serve: Serve) -> None:
    client = serve(cache_items=0, batch_wait_ms=20)
    alone = [client.embed(film)["results"][0]["vectors"]["text"] for film in FILMS]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda film: client.embed(film)["results"][0], FILMS))

    for expected, answer in zip(alone, answers, strict=True):
        np.testing.assert_allclose(answer["vectors"]["text"], expected, atol=1e-5)
    assert client.metric("llmemb_batch_items_count") < 24  # 12 alone, and fewer than 12 together


def test_a_hit_reports_the_tokens_and_cuts_of_the_miss(serve: Serve) -> None:
    client = serve()

    (miss,) = client.embed(LONG)["results"]
    (hit,) = client.embed(LONG)["results"]

    assert (miss["cached"], hit["cached"]) == (False, True)
    assert miss["truncated"] == ["plot", "zone"]
    assert miss["tokens"] == 128  # the tiny bundle's max_tokens
    assert hit == {**miss, "cached": True}
    assert client.metric('llmemb_embed_items_total{source="cache"}') == 1
    assert client.metric("llmemb_truncated_total") == 2


def test_a_hit_in_redis_reports_what_the_miss_did(serve: Serve, redis_server: RedisServer) -> None:
    client = serve(redis_url=redis_server.url, redis_timeout_s=2)

    (miss,) = client.embed(LONG)["results"]
    (hit,) = client.embed(LONG)["results"]

    assert (miss["cached"], hit["cached"]) == (False, True)
    np.testing.assert_allclose(hit["vectors"]["text"], miss["vectors"]["text"], atol=1e-6)
    assert {**hit, "cached": 0, "vectors": 0} == {**miss, "cached": 0, "vectors": 0}


def test_one_view_can_be_asked_for(shared: Client) -> None:
    (result,) = shared.embed(FILMS[0], view="text")["results"]

    assert list(result["vectors"]) == ["text"]


def test_a_new_item_has_the_views_that_need_no_training(shared: Client) -> None:
    (result,) = shared.embed({"item_id": "new", "attributes": {"title": "New"}})["results"]

    assert list(result["vectors"]) == ["text"]


def test_index_makes_all_items_recommendable_or_none(serve: Serve) -> None:
    client = serve()
    new = [{"item_id": f"new{n}", "attributes": {"title": f"New {n}"}} for n in range(3)]

    client.embed(*new)
    before = client.get("/info").json()["items"]
    client.embed(*new, index=True)

    assert before == 12
    assert client.get("/info").json()["items"] == 15
    assert {"new0", "new1", "new2"} <= {each for each, _ in client.recommended(["1"], k=500)}


@contextmanager
def stalled(client: Client) -> Iterator[None]:
    """The inference thread is busy with one long call."""
    release = threading.Event()
    busy = threading.Event()

    def work() -> None:
        busy.set()
        release.wait(20)

    def submit() -> None:
        with suppress(Exception):
            asyncio.run(client.parts.batcher.call(work))

    caller = threading.Thread(target=submit)
    caller.start()
    busy.wait(20)
    try:
        yield
    finally:
        release.set()
        caller.join()


def test_more_waiting_items_than_allowed_are_refused_at_once(serve: Serve) -> None:
    client = serve(max_items=8, max_waiting_items=8, cache_items=0)

    with ThreadPoolExecutor(4) as pool:
        with stalled(client):
            answers = [
                pool.submit(client.post, "/embed", json={"items": FILMS[:5]}) for _ in range(4)
            ]
            while sum(answer.done() for answer in answers) < 3:
                time.sleep(0.01)
        done = sorted((answer.result() for answer in answers), key=lambda each: each.status_code)

    assert [each.status_code for each in done] == [200, 429, 429, 429]
    assert int(done[-1].headers["retry-after"]) >= 1
    assert done[-1].json()["type"] == "urn:llmemb:overloaded"
    assert client.metric('llmemb_rejected_total{reason="queue_full"}') == 3


def test_an_answer_that_takes_too_long_is_a_504_and_its_work_is_dropped(serve: Serve) -> None:
    client = serve(request_timeout_s=0.3, cache_items=0)

    with stalled(client):
        answer = client.post("/embed", json={"items": FILMS[:2]})

    assert answer.status_code == 504
    assert answer.json()["type"] == "urn:llmemb:too-late"
    client.embed(FILMS[0])
    assert client.metric("llmemb_batch_items_sum") == 1  # the last one; the two were dropped


def test_the_work_of_a_client_that_left_is_dropped(serve: Serve) -> None:
    client = serve(cache_items=0)

    with stalled(client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/embed", json={"items": FILMS[:2]}, timeout=0.3)
        time.sleep(0.2)

    client.embed(FILMS[0])
    assert client.metric("llmemb_batch_items_sum") == 1
