"""What is seen of every request, whatever its route: id, log line, duration, stages."""

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import UNMATCHED, Metrics

log = logging.getLogger(__name__)

PROBED = {"/health/live", "/health/ready", "/metrics"}  # every few seconds, for ever
CLIENT_LEFT = 499  # nginx's number; nobody receives it
# Seconds that stages of the current request took, by name; whoever does the work adds them.
STAGES: ContextVar[dict[str, float]] = ContextVar("stages")


class Edge:
    """The outermost ASGI layer; service.gate.Gate, inside it, decides who comes in.

    It echoes or makes X-Request-ID and writes one log line and one observation a request. The
    line has what `scope["state"]` knows by then, and never a word of a body.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope; only HTTP is touched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not re.fullmatch(r"[!-~]{1,128}", request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        STAGES.set({})
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            status = status or CLIENT_LEFT
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "").replace(":path}", "}")
            self._metrics.observe_request(scope["method"], route, status, seconds)
            log.log(
                logging.DEBUG if route in PROBED else logging.INFO,
                "request method=%s route=%s status=%d ms=%.1f request_id=%s",
                scope["method"],
                route or UNMATCHED,
                status,
                1000 * seconds,
                request_id,
            )
