"""What is seen of every request, whatever its route: id, log line, duration, stages."""

import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import UNMATCHED, Metrics, stages
from service.tracing import Tracing

log = logging.getLogger(__name__)

PROBED = {"/health/live", "/health/ready", "/metrics"}  # every few seconds, for ever
CLIENT_LEFT = 499  # nginx's number; nobody receives it
# Of pages: nothing but what this service itself serves. Swagger UI writes styles into its markup
# and has images in its style sheet.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Edge:
    """The outermost ASGI layer; service.gate.Gate, inside it, decides who comes in.

    It echoes or makes X-Request-ID and writes one log line and one observation a request. The
    line has what `scope["state"]` knows by then, and never a word of a body.

    Args:
        routes: paths and templates of paths, by which requests are called that were refused
            before they were routed.
        tracing: makes a span of every request that is no probe.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        routes: Sequence[str],
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._paths = frozenset(route for route in routes if "{" not in route)
        # The one that says more of the end of a path comes first.
        templates = [(each.partition("{")[0], each.rpartition("}")[2], each) for each in routes]
        self._templates = sorted(
            (each for each in templates if "{" in each[2]), key=lambda each: -len(each[1])
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope; only HTTP is touched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not re.fullmatch(r"[!-~]{1,128}", request_id):
            request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        taken: dict[str, float] = {}
        stages.set(taken)
        status = 0
        span = None
        if self._tracing and scope["path"] not in PROBED:
            span = self._tracing.start(scope, headers)

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                if answered.get("content-type", "").startswith("text/html"):
                    for name, value in PAGE_HEADERS.items():
                        answered.setdefault(name, value)  # a page may be stricter
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            status = status or CLIENT_LEFT
            seconds = time.perf_counter() - started
            route = self._route(scope)
            self._metrics.observe_request(scope["method"], route, status, seconds)
            fields: dict[str, object] = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route or UNMATCHED,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "bytes_in": state.get("bytes_in", 0),
            }
            if "key" in state:
                fields["key"] = state["key"]
            if span:
                span.end(scope["method"], route, status)
            trace_id = span.trace_id if span else _trace_id(headers.get("traceparent", ""))
            if trace_id:
                fields["trace_id"] = trace_id
            if taken:
                fields["stages_ms"] = {name: round(1000 * each, 1) for name, each in taken.items()}
            log.log(logging.DEBUG if route in PROBED else logging.INFO, "request", extra=fields)

    def _route(self, scope: Scope) -> str:
        if "route" in scope:
            path: str = getattr(scope["route"], "path", "")
            return path.replace(":path}", "}")
        path = scope["path"]
        if path in self._paths:
            return path
        return next(
            (
                each
                for start, end, each in self._templates
                if path.startswith(start) and path.endswith(end)
            ),
            "",
        )


def _trace_id(traceparent: str) -> str | None:
    """The trace that a caller's W3C header names."""
    found = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*", traceparent)
    return found[1] if found else None
