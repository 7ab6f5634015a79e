import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle
from models.int8 import why_not_int8
from models.manifest import BundleError
from service.app import create_app
from service.metrics import Metrics
from service.serving import check_encoder
from service.settings import read_settings
from tests.service.conftest import Serve
from tests.service.running import Client, wait_until
from tests.service.test_embed import stalled


def test_info_says_what_is_served(shared: Client, bundle: Bundle) -> None:
    info = shared.get("/info").json()

    assert info["bundle"] == bundle.bundle_hash
    assert info["encoder"] == bundle.encoder_hash
    assert (info["llm"], info["llm_dim"], info["dtype"]) == ("tiny-llama", 16, "float32")
    assert [(v["name"], v["width"], v["source"]) for v in info["views"]] == [
        ("text", 8, "projection"),
        ("id", 4, "table"),
    ]
    assert info["template"]["noun"] == "film"
    assert (info["items"], info["training_items"]) == (12, 12)
    assert info["limits"]["max_items"] == 64


def test_info_tells_what_the_catalogue_holds_now(serve: Serve) -> None:
    client = serve()
    before = client.get("/info").json()["catalogue"]
    item = {"title": "Ran", "price": 3.5, "tags": ["a", "b"], "nothing": None}

    client.put("/items/new", json={"attributes": item, "hidden": True})
    after = client.get("/info").json()["catalogue"]
    client.put("/items/new", json={"attributes": {"title": "Ran"}})
    client.delete("/items/new")
    again = client.get("/info").json()["catalogue"]

    assert (before["items"], before["hidden"]) == (12, 0)
    assert (after["items"], after["hidden"]) == (13, 1)
    assert after["version"] == before["version"] + 1
    told = {each["name"]: each for each in after["attributes"]}
    assert told["price"] == {"name": "price", "kinds": {"number": 1}, "share": round(1 / 13, 4)}
    assert told["tags"]["kinds"] == {"list of strings": 1}
    assert "nothing" not in told
    assert (told["title"]["kinds"]["string"], told["title"]["share"]) == (13, 1.0)
    assert again["attributes"] == before["attributes"]


def test_a_ready_service_lives_and_is_ready(shared: Client) -> None:
    assert shared.get("/health/live").json() == {"status": "alive"}
    assert shared.get("/health/ready").json() == {"status": "ready", "items": 12, "degraded": []}


def test_probes_and_the_page_may_be_asked_for_by_head(shared: Client) -> None:
    for path in ("/health/live", "/health/ready", "/"):
        got, head = shared.get(path), shared.request("HEAD", path)

        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


def test_until_it_is_loaded_it_lives_and_names_its_phase(tiny_bundle: Path, tmp_path: Path) -> None:
    import asyncio

    import httpx

    app = create_app(read_settings(bundle=tiny_bundle, catalogue_dir=tmp_path))  # never started

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            paths = ("/health/live", "/health/ready", "/info", "/metrics")
            return [await client.get(path) for path in paths]

    live, ready, info, metrics = asyncio.run(ask())

    assert live.status_code == 200
    assert (ready.status_code, ready.json()["detail"]) == (503, "starting")
    assert (info.status_code, info.json()["type"]) == (503, "urn:llmemb:not-ready")
    assert int(info.headers["retry-after"]) >= 1
    assert metrics.status_code == 200


def test_a_dead_inference_thread_makes_liveness_red(serve: Serve) -> None:
    client = serve()

    def die(*_: object) -> None:
        raise SystemExit

    client.parts.batcher._encode = die
    answer = client.post("/embed", json={"items": [{"item_id": "x", "attributes": {"a": "b"}}]})

    assert answer.status_code == 503
    assert client.get("/health/live").status_code == 503


def test_inference_that_is_stuck_makes_liveness_red_until_it_goes_on(serve: Serve) -> None:
    client = serve(stuck_s=1)

    with stalled(client):
        assert client.get("/health/live").status_code == 200
        wait_until(lambda: client.get("/health/live").status_code == 503)
        live = client.get("/health/live")
    assert (live.status_code, "stuck" in live.json()["detail"]) == (503, True)
    assert client.get("/health/live").status_code == 200


def test_the_self_test_compares_alone_together_and_exported(
    shared: Client, tiny_bundle: Path
) -> None:
    assert shared.get("/info").json()["parity"] > 0.9999

    bundle = Bundle.open(tiny_bundle, dtype="float32")
    bundle.llm_vectors = bundle.llm_vectors + np.float32(0.2)
    with pytest.raises(BundleError, match=r"other vectors here.*LLMEMB_DTYPE at auto"):
        check_encoder(bundle)


@pytest.mark.skipif(why_not_int8() is not None, reason="no VNNI")
def test_the_self_test_knows_how_near_an_int8_vector_is(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, dtype="int8")

    assert 0.995 < check_encoder(bundle) < 0.9999999

    bundle.llm_vectors = bundle.llm_vectors + np.float32(0.2)
    with pytest.raises(BundleError, match=r"0.995 is the least"):
        check_encoder(bundle)


EXPECTED = [
    'http_server_request_duration_seconds_count{method="POST",route="/embed",status="200"} 0.0',
    'llmemb_embed_items_total{source="cache"} 0.0',
    'llmemb_embed_items_total{source="model"} 0.0',
    'llmemb_embed_items_total{source="inflight"} 0.0',
    *(
        f'llmemb_embed_stage_seconds_count{{stage="{stage}"}} 0.0'
        for stage in ("render", "cache", "queue", "tokenize", "forward", "project")
    ),
    *(
        f'llmemb_cache_requests_total{{result="{result}"}} 0.0'
        for result in ("hit", "miss", "error", "bypass", "corrupt")
    ),
    "llmemb_cache_circuit_state 0.0",
    "llmemb_padding_ratio_count 0.0",
    "llmemb_batch_budget_tokens 1024.0",
    'llmemb_recommend_fallback_total{reason="fewer_than_k"} 0.0',
    "llmemb_item_to_recommendable_seconds_count 0.0",
    "llmemb_batch_items_count 0.0",
    "llmemb_batch_tokens_count 0.0",
    "llmemb_queue_tokens 0.0",
    'llmemb_rejected_total{reason="queue_full"} 0.0',
    "llmemb_truncated_total 0.0",
    "llmemb_index_items 12.0",
    'llmemb_view_items{view="text"} 12.0',
    'llmemb_view_items{view="id"} 11.0',
    "llmemb_queue_limit_tokens 2048.0",
    "llmemb_inflight_requests 0.0",
    "llmemb_inflight_limit_requests 256.0",
    "llmemb_index_search_seconds_count 0.0",
]


def test_every_metric_stands_at_zero_before_the_first_request(serve: Serve, bundle: Bundle) -> None:
    text = serve().get("/metrics").text

    for line in EXPECTED:
        assert line in text.splitlines()
    assert f'bundle="{bundle.bundle_hash}"' in text


def test_a_later_item_is_counted_as_one_without_what_only_training_makes(serve: Serve) -> None:
    client = serve()
    client.put("/items/new", json={"attributes": {"title": "Born later"}})
    client.put("/items/1", json={"attributes": {"title": "Film number 1"}, "hidden": True})

    assert client.metric("llmemb_index_items") == 12
    assert client.metric('llmemb_view_items{view="text"}') == 12
    assert client.metric('llmemb_view_items{view="id"}') == 10


def test_requests_in_flight_are_counted_while_they_are(serve: Serve) -> None:
    client = serve()

    def lines() -> Iterator[bytes]:
        wait_until(lambda: client.metric("llmemb_inflight_requests") == 1)
        yield b""

    sent = client.post(
        "/items:import?import_id=a",
        content=lines(),
        headers={"content-type": "application/x-ndjson"},
    )

    assert sent.status_code == 200
    assert client.metric("llmemb_inflight_requests") == 0


def test_metrics_are_named_as_prometheus_asks() -> None:
    """The rules of `promtool check metrics` that apply here."""
    text = Metrics().text().decode()

    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert kinds.keys() == helps.keys()
    for name, kind in kinds.items():
        assert name.startswith(("llmemb_", "http_server_", "process_"))
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"milli|_ms\b|minutes|_kilo|[A-Z]", name)
        assert not name.endswith(("_count", "_sum", "_bucket", "_created"))


def test_requests_are_counted_under_their_route_whatever_their_status(serve: Serve) -> None:
    client = serve()
    client.get("/items/a%2Fb")
    client.get("/items/c")
    client.get("/no/such/path")
    client.request("PROPFIND", "/nor/this")

    prefix = "http_server_request_duration_seconds_count"
    expected = {
        f'{prefix}{{method="GET",route="/items/{{item_id}}",status="404"}} 2.0',
        f'{prefix}{{method="GET",route="unmatched",status="404"}} 1.0',
        f'{prefix}{{method="other",route="unmatched",status="404"}} 1.0',
    }
    # A request is counted after its answer.
    wait_until(lambda: expected <= set(client.get("/metrics").text.splitlines()))


def test_two_apps_have_their_own_metrics(shared: Client, serve: Serve) -> None:
    other = serve()
    shared.recommended(["1"])

    assert other.metric("llmemb_index_search_seconds_count") == 0
