"""Requests as bytes: JSON that is JSON, and item ids that may hold any character."""

import email.message
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Scope

from models.item import MAX_ID_BYTES
from service.errors import Invalid, Malformed, NotJSON, Superseded

ITEM_PREFIX = b"/items/"
NEIGHBOURS = b"/neighbours"
JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
# An /embed of 1024 items has 2049. Each object where none belongs costs a handful of errors, and
# a body of 2 MiB has room for 700,000.
MAX_OBJECTS = 5000


class JSONRequest(Request):
    """A request whose body is decoded already."""

    decoded: Any = None

    async def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The body."""
        return self.decoded


class JSONRoute(APIRoute):
    """A route whose body must be strict JSON: application/json, finite numbers, whole text.

    FastAPI's own reading takes NaN, and text that no UTF-8 can hold.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the check."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None:
                accepted = [JSON, MERGE_PATCH] if "PATCH" in (self.methods or ()) else [JSON]
                require_type(request.headers.get("content-type"), accepted)
                strict = JSONRequest(request.scope, request.receive)
                strict.decoded = decode(await strict.body())
                request = strict
            try:
                return await handle(request)
            except Superseded:
                # Nothing was written: a whole new start, in the bundle that is active now.
                return await handle(request)

        return checked


def require_type(content_type: str | None, accepted: Sequence[str]) -> None:
    """Make sure that a body is what its route reads.

    Raises:
        NotJSON: it says that it is something else, or nothing.
    """
    message = email.message.Message()
    message["content-type"] = content_type or ""
    if message.get_content_type() not in accepted:
        raise NotJSON(f"the content type is {content_type!a}; send {accepted[0]}")


def _refuse_constant(name: str) -> None:
    raise Malformed(f"{name} is no JSON; numbers must be finite")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Malformed(f"{text[:40]} is too large a number")
    return number


def decode(body: bytes, what: str = "the body") -> Any:  # noqa: ANN401 - any JSON
    """The JSON in a body.

    Args:
        what: what the bytes are called in an error.

    Raises:
        Malformed: they hold none; says where.
    """
    if not body:
        raise Malformed(f"{what} is empty; send a JSON object")
    objects = 0

    def counted(fields: dict[str, Any]) -> dict[str, Any]:
        nonlocal objects
        objects += 1
        if objects > MAX_OBJECTS:
            raise Malformed(f"{what} holds more than {MAX_OBJECTS} objects")
        return fields

    try:
        decoded = json.loads(
            body.decode("utf-8"),
            object_hook=counted,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if re.search(rb"\\u[dD][89a-fA-F]", body):
            json.dumps(decoded, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{what} is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise Malformed("a string holds half a surrogate pair, which is no text") from None
    except json.JSONDecodeError as error:
        raise Malformed(
            f"{what} is no JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise Malformed(f"{what} is nested too deeply") from None
    except ValueError:
        raise Malformed(f"{what} holds a number with too many digits") from None
    return decoded


async def item_id_of(request: Request) -> str:
    """The item id in a path `/items/ID`: all that follows, percent-decoded once.

    Routing sees the path decoded, where `a%2Fb` and `a/b` are one; so the raw path is read.

    Raises:
        Malformed: a percent sign without two hex digits, or bytes that are not UTF-8.
        Invalid: no id, too long, or with a control character.
    """
    return _item_id(request.scope["raw_path"])


def asks_for_neighbours(scope: Scope) -> bool:
    """Whether a path is `/items/ID/neighbours`; an ID that ends like that has its slash encoded."""
    raw: bytes = scope["raw_path"]
    return raw.endswith(NEIGHBOURS)


async def item_id_of_neighbours(request: Request) -> str:
    """The item id in a path `/items/ID/neighbours`; as item_id_of."""
    return _item_id(request.scope["raw_path"].removesuffix(NEIGHBOURS))


def _item_id(raw: bytes) -> str:
    encoded = raw.removeprefix(ITEM_PREFIX)
    if encoded == raw:
        raise Malformed("the path must say /items/ without percent signs in it")
    if re.search(rb"%(?![0-9a-fA-F]{2})", encoded):
        raise Malformed("the item id in the path has a % that no two hex digits follow; send %25")
    try:
        item_id = unquote_to_bytes(encoded).decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the item id in the path is not percent-encoded UTF-8") from None
    if not item_id:
        raise Invalid.field("item_id", "is empty")
    if len(item_id.encode()) > MAX_ID_BYTES:
        raise Invalid.field("item_id", f"is longer than {MAX_ID_BYTES} bytes", item_id)
    if any(ord(c) < 32 or ord(c) == 127 for c in item_id):
        raise Invalid.field("item_id", "holds a control character", item_id)
    return item_id
