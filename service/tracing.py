"""One span a request, sent by OTLP to where the standard OTEL_* variables say; else nothing."""

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from service import version
from service.metrics import METHODS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CLOSE_S = 5.0  # for the last spans; a collector that is away does not hold the process up


class RequestSpan:
    """The server span of one request; attributes by OpenTelemetry's HTTP conventions."""

    def __init__(self, span: "Span") -> None:
        self._span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def end(self, method: str, route: str, status: int) -> None:
        """The answer is out, or never will be."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - an extra

        if route:
            self._span.set_attribute("http.route", route)
        self._span.update_name(f"{_known(method)} {route}".rstrip())
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Makes spans, and sends them from a thread of its own. Made by open_tracing."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("llmemb", version())

    def start(self, scope: Scope, headers: Headers) -> RequestSpan:
        """The span of a request that begins, below the caller's if it says so (W3C traceparent)."""
        from opentelemetry import propagate  # noqa: PLC0415
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        method = _known(scope["method"])
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        if method != scope["method"]:
            attributes["http.request.method_original"] = scope["method"]
        if scope.get("client"):
            attributes["client.address"], attributes["client.port"] = scope["client"]
        if scope.get("server"):
            attributes["server.address"], attributes["server.port"] = scope["server"]
        if agent := headers.get("user-agent"):
            attributes["user_agent.original"] = agent
        span = self._tracer.start_span(
            method, propagate.extract(headers), SpanKind.SERVER, attributes
        )
        return RequestSpan(span)

    def close(self) -> None:
        """Send what is left, if that takes no more than CLOSE_S."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(CLOSE_S)
        if last.is_alive():
            log.warning("the last spans could not be sent within %g s", CLOSE_S)


def _known(method: str) -> str:
    return method if method in METHODS else "_OTHER"


def open_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing as the standard variables ask for; None if they do not, or the extra is missing.

    The endpoint turns it on. Headers, timeouts, sampling, propagators and resource attributes
    are read by OpenTelemetry itself.
    """
    asked = next((name for name in ENDPOINTS if environment.get(name)), None)
    if asked is None or environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning(
            "%s is set, and sending traces needs an extra: pip install 'llmemb[tracing]'; "
            "serving without traces",
            asked,
        )
        return None
    ours = Resource({"service.name": "llmemb", "service.version": version()})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    # The process has an end of its own; without it nothing would bound what this waits for.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
