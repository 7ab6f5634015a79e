import base64
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from models.bundle import Bundle
from models.encoder import Encoded, Tokens
from tests.service.conftest import RedisServer, Serve
from tests.service.half_sent import wait_until_in_flight
from tests.service.running import Client, wait_until
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


def test_base64_says_the_same_as_numbers(shared: Client) -> None:
    (numbers,) = shared.embed(FILMS[0])["results"]
    (text,) = shared.embed(FILMS[0], encoding="base64")["results"]

    assert numbers["vectors"].keys() == text["vectors"].keys()
    for name, vector in numbers["vectors"].items():
        decoded = np.frombuffer(base64.b64decode(text["vectors"][name]), "<f4")
        np.testing.assert_array_equal(decoded, np.array(vector, np.float32))


def test_the_llms_own_vector_can_be_asked_for(shared: Client, bundle: Bundle) -> None:
    results = shared.embed(*FILMS, view="llm")["results"]

    for film, result in zip(FILMS, results, strict=True):
        expected = bundle.llm_vectors[bundle.catalogue.rows[film["item_id"]] - 1]
        assert list(result["vectors"]) == ["llm"]
        np.testing.assert_allclose(result["vectors"]["llm"], expected, atol=1e-5)


def test_equal_texts_of_one_request_are_read_once(serve: Serve) -> None:
    client = serve(cache_items=0)
    twins = [{**FILMS[0], "item_id": f"twin{number}"} for number in range(3)]

    results = client.embed(*twins)["results"]

    assert [each["vectors"] for each in results] == [results[0]["vectors"]] * 3
    assert client.metric('llmemb_embed_items_total{source="model"}') == 1
    assert client.metric('llmemb_embed_items_total{source="inflight"}') == 2


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
    """The inference thread is busy with one item, and finished with it afterwards."""
    batcher = client.parts.batcher
    encode, release = batcher._encode, threading.Event()

    def slowly(tokens: Sequence[Tokens], batch_tokens: int) -> Encoded:
        release.wait(20)
        return encode(tokens, batch_tokens)

    batcher._encode = slowly
    blocker = {"item_id": "blocker", "attributes": {"title": "Ran"}}
    caller = threading.Thread(target=lambda: client.post("/embed", json={"items": [blocker]}))
    caller.start()
    wait_until(lambda: batcher.running_s > 0)
    try:
        yield
    finally:
        release.set()
        caller.join()
        batcher._encode = encode


def test_more_waiting_tokens_than_allowed_are_refused_at_once(serve: Serve) -> None:
    client = serve(max_queue_tokens=500, cache_items=0)
    bodies = [{"items": FILMS[start : start + 4]} for start in (0, 4, 8)]  # 70 letters each

    with ThreadPoolExecutor(2) as pool, stalled(client):
        answers = [pool.submit(client.post, "/embed", json=body) for body in bodies[:2]]
        wait_until(lambda: client.metric("llmemb_queue_tokens") >= 500)
        refused = client.post("/embed", json=bodies[2])

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["type"] == "urn:llmemb:overloaded"
    assert client.metric('llmemb_rejected_total{reason="queue_full"}') == 1
    assert [each.result().status_code for each in answers] == [200, 200]


def test_what_is_cached_is_answered_however_full_the_queue_is(serve: Serve) -> None:
    client = serve(max_queue_tokens=1)
    client.embed(FILMS[0])

    with stalled(client):
        assert client.post("/embed", json={"items": [FILMS[1]]}).status_code == 429
        assert client.embed(FILMS[0])["results"][0]["cached"]


def test_the_same_text_asked_for_at_once_is_read_once(serve: Serve) -> None:
    client = serve(cache_items=0)

    with ThreadPoolExecutor(10) as pool, stalled(client):
        answers = [pool.submit(client.embed, FILMS[0], view="text") for _ in range(10)]
        wait_until(lambda: client.metric('llmemb_embed_items_total{source="inflight"}') == 9)

    vectors = [each.result()["results"][0]["vectors"]["text"] for each in answers]
    assert vectors == [vectors[0]] * 10
    assert client.metric('llmemb_embed_items_total{source="model"}') == 2  # and the blocker


def test_an_answer_that_takes_too_long_is_a_504_and_its_work_is_dropped(serve: Serve) -> None:
    client = serve(request_timeout_s=0.3, cache_items=0)

    with stalled(client):
        answer = client.post("/embed", json={"items": FILMS[:2]})

    assert answer.status_code == 504
    assert answer.json()["type"] == "urn:llmemb:too-late"
    client.embed(FILMS[0])
    assert client.metric("llmemb_batch_items_sum") == 2  # the first and the last; two were dropped


def test_the_work_of_a_client_that_left_is_dropped(serve: Serve) -> None:
    client = serve(cache_items=0)

    with stalled(client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/embed", json={"items": FILMS[:2]}, timeout=0.3)
        wait_until_in_flight(client, requests=1)  # the blocker

    client.embed(FILMS[0])
    assert client.metric("llmemb_batch_items_sum") == 2
