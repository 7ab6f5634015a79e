"""Spans, as a collector receives them."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.tracing import open_tracing
from tests.service.running import Client, free_port, in_a_process

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EMBED = {"items": [{"item_id": "secret-id", "attributes": {"title": "secret text"}}]}
ERROR = 2  # StatusCode.STATUS_CODE_ERROR of OTLP


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver that keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: list[tuple[str, ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for _, request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def attributes(holder: Any) -> dict[str, Any]:  # noqa: ANN401 - a protobuf message
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes
    }


def test_every_request_is_a_span_that_ends_with_the_process(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # so that it is the end that sends them
            "LLMEMB_LOG_LEVEL": "info",
        }
        with in_a_process(tiny_bundle, tmp_path / "catalogue", port, **environment) as process:
            with Client(port) as client:
                client.wait_until_ready(process)
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "user-agent": "shop/1"}
                client.post("/embed", json=EMBED, headers=headers)
                client.get("/items/nope")
                late = {"items": [{"item_id": "x", "attributes": {"title": "long " * 100}}]}
                client.post("/embed", json=late, headers={"x-request-timeout-ms": "1"})
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=30)

    embed, lost, slow = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    (path, request), *_ = collector.received
    resource = attributes(request.resource_spans[0].resource)
    assert path == "/v1/traces"
    assert process.returncode == 0, output
    assert resource["service.name"] == "llmemb"
    assert resource["deployment.environment.name"] == "test"
    assert (embed.trace_id.hex(), embed.parent_span_id.hex()) == (TRACE, PARENT)
    assert (embed.name, embed.kind) == ("POST /embed", 2)  # SPAN_KIND_SERVER
    told = attributes(embed)
    assert told["http.request.method"] == "POST"
    assert told["http.route"] == told["url.path"] == "/embed"
    assert told["http.response.status_code"] == 200
    assert told["url.scheme"] == "http"
    assert told["user_agent.original"] == "shop/1"
    assert embed.end_time_unix_nano > embed.start_time_unix_nano
    assert lost.name == "GET /items/{item_id}"
    assert (lost.status.code, attributes(lost)["http.response.status_code"]) == (0, 404)
    assert (slow.status.code, attributes(slow)["error.type"]) == (ERROR, "504")
    assert "secret" not in str(collector.spans)
    lines = [json.loads(line) for line in output.splitlines()]
    traced = [line["trace_id"] for line in lines if line["message"] == "request"]
    assert traced == [span.trace_id.hex() for span in (embed, lost, slow)]


def test_a_collector_that_is_away_costs_no_request_and_little_at_the_end(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with in_a_process(tiny_bundle, tmp_path / "catalogue", port, **environment) as process:
        with Client(port) as client:
            client.wait_until_ready(process)
            status = client.post("/embed", json=EMBED).status_code
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)

    assert (status, process.returncode) == (200, 0), output
    assert time.monotonic() - started < 10


def test_without_the_extra_it_serves_and_says_what_to_install(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    blocked = "import sys\nsys.modules['opentelemetry.sdk'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    port = free_port()
    environment = {
        "PYTHONPATH": str(tmp_path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "LLMEMB_LOG_LEVEL": "warning",
    }
    with in_a_process(tiny_bundle, tmp_path / "catalogue", port, **environment) as process:
        with Client(port) as client:
            client.wait_until_ready(process)
            status = client.post("/embed", json=EMBED).status_code
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)

    assert (status, process.returncode) == (200, 0), output
    (line,) = output.splitlines()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set" in json.loads(line)["message"]
    assert "pip install 'llmemb[tracing]'" in json.loads(line)["message"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "shop"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_unless_the_environment_names_a_collector(
    environment: dict[str, str],
) -> None:
    assert open_tracing(environment) is None
