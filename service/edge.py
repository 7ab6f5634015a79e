"""What happens to every request, whatever its route: id, body limit, deadline, log, duration."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, ServiceError, TooLate, Unexpected, answer
from service.errors import request_path as path_of
from service.metrics import UNMATCHED, Metrics

log = logging.getLogger(__name__)

PROBED = {"/health/live", "/health/ready", "/metrics"}  # every few seconds, for ever
CLIENT_LEFT = 499  # nginx's number; nobody receives it


class Edge:
    """The outermost ASGI layer.

    It echoes or makes X-Request-ID, refuses a body of more than `max_body_bytes` as its bytes
    stream in, gives up after `timeout_s`, stops the work of a client that has left, answers
    defects with 500 and no detail, and writes one log line and one observation a request.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, timeout_s: float, metrics: Metrics
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics

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
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        complete = False

        async def tagged(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        async def refuse(error: ServiceError) -> None:
            # Nothing of the body is read any more, so the connection cannot be kept.
            self._metrics.observe_refusal(error)
            closing = {"connection": "close"} if isinstance(error, BodyTooLarge) else None
            await answer(error, path_of(scope), request_id, closing)(scope, receive, tagged)

        try:
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length[:20]) > self._max_body_bytes:
                await refuse(self._too_large())
                return
            error = await self._run(scope, receive, tagged, lambda: complete)
            if error is None:
                if not status:
                    status = CLIENT_LEFT
            elif status:
                raise error  # half an answer is out; the server cuts the connection
            else:
                await refuse(error)
        finally:
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

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_body_bytes} bytes")

    async def _run(
        self, scope: Scope, receive: Receive, send: Send, complete: Callable[[], bool]
    ) -> ServiceError | None:
        """Run the app; the error it has not answered itself, if any."""
        body_read = asyncio.Event()
        received = 0

        async def left() -> None:
            await body_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        async def counted() -> Message:
            nonlocal received
            if body_read.is_set():
                await asyncio.shield(watch)
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                return message
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                body_read.set()
            return message

        watch = asyncio.create_task(left())
        work = asyncio.ensure_future(self._app(scope, counted, send))
        try:
            await asyncio.wait(
                {work, watch}, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            client_left = watch.done()
            if not work.done() and not complete():
                work.cancel()
            try:
                await work
            except asyncio.CancelledError:
                if not work.cancelled():
                    raise
                if client_left:
                    return None
                return TooLate(f"no answer within {self._timeout_s:g} s")
        except ServiceError as error:
            return error
        except ClientDisconnect:
            return None
        except Exception:
            log.exception("unexpected error, request_id=%s", scope["state"]["request_id"])
            return Unexpected("an unexpected error; the log has more under this request id")
        finally:
            work.cancel()
            watch.cancel()
        return None
