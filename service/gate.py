"""Who and what comes in, before a byte of a body is parsed: keys, admission, limit, deadline."""

import asyncio
import logging
import math
import re
import traceback
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission, Ticket
from service.auth import ALL, Keys, is_open, require
from service.errors import (
    BodyTooLarge,
    Malformed,
    NotReady,
    ServiceError,
    TooLate,
    Unexpected,
    answer,
    request_path,
)
from service.metrics import Metrics

log = logging.getLogger(__name__)

DEADLINE = "X-Request-Timeout-Ms"
# As long as a catalogue is: such a request has no deadline but one that its client asks for, and
# its route gives it up where it stands still. A body is read line by line and bounds each.
LONG = frozenset({("POST", "/items:import"), ("GET", "/items:export")})
LARGE = frozenset({("POST", "/items:import")})
# Whoever only looks how far a reindex is shall not slow it down.
ASIDE = frozenset({("GET", "/admin/bundles")})
# What is left of a body that nobody wants is thrown away up to here, so that its connection can
# be used again. With more to come it is closed.
DRAINED_BYTES = 256 * 2**10
DRAINED_S = 1.0
# A connection that closes with bytes unread is reset, which may cost the client the answer. So
# it has a moment to read that, and to stop.
LINGER_BYTES = 8 * 2**20
LINGER_S = 1.0


class Gate:
    """The ASGI layer that refuses what cannot be served, and gives up what takes too long.

    It asks for an API key, refuses while too much is in flight, refuses a body of more than
    `max_body_bytes` as its bytes stream in, gives up after `timeout_s` or what the client
    allows, stops the work of a client that has left, and answers defects with 500 and no detail.
    What service.auth calls open needs no key, and is answered however much is in flight. To be
    called by service.edge.Edge. Routes of LONG and LARGE are not bounded here.

    Args:
        keys: None serves everybody.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        admission: Admission,
        max_body_bytes: int,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._keys = keys
        self._admission = admission
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope; only HTTP is touched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        # Longer than any limit that fits a computer; the parser has refused what is no number.
        declared = int(length[:18]) if length.isdecimal() else 0
        chunked = "transfer-encoding" in headers
        ticket = None
        asked = scope["method"], scope["path"]
        large = asked in LARGE
        try:
            closed = not is_open(scope["path"])
            if closed:
                self._authenticate(scope, headers)
            timeout_s = self._deadline_s(headers, math.inf if asked in LONG else self._timeout_s)
            if declared > self._max_body_bytes and not large:
                raise self._too_large()
            if closed:
                ticket = self._admission.enter(
                    0 if large else declared, aside=asked in ASIDE, long=asked in LONG
                )
        except ServiceError as error:
            kept = declared <= DRAINED_BYTES  # the server throws that much away by itself
            if "expect" in headers:
                kept = False  # it waits for `100 Continue` with the body, and need not send it
            elif chunked:
                kept = await _drained(receive, DRAINED_BYTES, DRAINED_S)
            await self._refuse(error, scope, receive, send if kept else _closing(send, receive))
            return
        # Of a body that does not say how long it is, any rest may be long.
        unread: float = LINGER_BYTES if chunked else declared
        most: float = self._max_body_bytes
        if large:
            unread, most = (math.inf if chunked else declared), math.inf
        try:
            await self._admitted(scope, receive, send, timeout_s, ticket, unread, most)
        finally:
            if ticket:
                ticket.leave()

    def _authenticate(self, scope: Scope, headers: Headers) -> None:
        state = scope["state"]
        state["scopes"] = ALL
        if self._keys:
            key = self._keys.identify(headers.get("authorization"))
            state["scopes"], state["key"] = key.scopes, key.name
            require(key, scope["method"], scope["path"])

    def _deadline_s(self, headers: Headers, longest: float) -> float:
        asked = headers.get(DEADLINE)
        if asked is None:
            return longest
        if not re.fullmatch(r"0*[1-9][0-9]*", asked):
            shown = asked if len(asked) <= 40 else asked[:39] + "…"
            raise Malformed(f"{DEADLINE} is {shown!a}; send whole milliseconds, 1 or more")
        # More digits than a float has room for are beyond any deadline, too.
        return min(longest, int(asked.lstrip("0")[:15]) / 1000)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_body_bytes} bytes")

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._metrics.observe_refusal(error)
        response = answer(error, request_path(scope), scope["state"]["request_id"])
        await response(scope, receive, send)

    async def _admitted(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        timeout_s: float,
        ticket: Ticket | None,
        unread: float,
        most: float,
    ) -> None:
        state = scope["state"]
        state["bytes_in"], state["body_read"] = 0, False
        started = complete = False

        async def watched(message: Message) -> None:
            nonlocal started, complete, send
            if message["type"] == "http.response.start":
                started = True
                if not state["body_read"] and unread - state["bytes_in"] > DRAINED_BYTES:
                    send = _closing(send, receive)  # rather than take in what nobody wants
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            error = await self._run(
                *(scope, receive, watched, timeout_s, ticket, most), complete=lambda: complete
            )
        except asyncio.CancelledError:
            if started:
                raise
            # Only the server cancels a request: it stops, and the time for that is over.
            error = NotReady("the service has stopped before this was done", retry_after_s=5)
        if error is None:
            return
        if started:
            raise error  # half an answer is out; the server cuts the connection
        await self._refuse(error, scope, receive, watched)

    async def _run(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        timeout_s: float,
        ticket: Ticket | None,
        most: float,
        complete: Callable[[], bool],
    ) -> ServiceError | None:
        """Run the app; the error it has not answered itself, if any."""
        state = scope["state"]
        body_read = asyncio.Event()

        async def left() -> None:
            await body_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        async def counted() -> Message:
            if body_read.is_set():
                await asyncio.shield(watch)
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                return message
            state["bytes_in"] += len(message.get("body", b""))
            if state["bytes_in"] > most:
                raise self._too_large()
            if ticket and most < math.inf:
                ticket.received(state["bytes_in"])
            if not message.get("more_body", False):
                state["body_read"] = True
                body_read.set()
            return message

        watch = asyncio.create_task(left())
        work = asyncio.ensure_future(self._app(scope, counted, send))
        try:
            await asyncio.wait(
                {work, watch},
                timeout=timeout_s if timeout_s < math.inf else None,
                return_when=asyncio.FIRST_COMPLETED,
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
                return TooLate(f"no answer within {timeout_s:g} s")
        except ServiceError as error:
            return error
        except ClientDisconnect:
            return None
        except Exception as error:
            # Not its message, which may quote the request.
            log.error(
                "unexpected error",
                extra={
                    "request_id": state["request_id"],
                    "error": type(error).__name__,
                    "traceback": "".join(traceback.format_tb(error.__traceback__)),
                },
            )
            return Unexpected("an unexpected error; the log has more under this request id")
        finally:
            work.cancel()
            watch.cancel()
        return None


def _closing(send: Send, receive: Receive) -> Send:
    """A `send` after whose answer the connection is closed, with a moment to read it."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        elif not message.get("more_body", False):
            await send({**message, "more_body": True})
            await _drained(receive, LINGER_BYTES, LINGER_S)
            message = {"type": "http.response.body"}
        await send(message)

    return closing


async def _drained(receive: Receive, most: int, timeout_s: float) -> bool:
    """Throw the rest of a body away; False if there is more of it, or it does not come."""
    drained = 0
    try:
        async with asyncio.timeout(timeout_s):
            while drained <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                drained += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return True
    except TimeoutError:
        pass
    return False
