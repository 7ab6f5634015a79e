"""The catalogue as a whole: its pages and its export."""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from service.errors import Overloaded, problems
from service.routes.items import CatalogueItem
from service.rows import Stored
from service.serving import Parts, Serving, parts_of, reading, serving_of

AT_ONCE = 500  # lines of an export that are read together
EXPORTS = 4  # under way; while one is read the write-ahead log only grows
PIECE_BYTES = 2**16  # that are sent together: a client that is slow must be seen to take some
MEDIA_TYPE = "application/x-ndjson"


router = APIRouter(tags=["items"])


class ListQuery(BaseModel):
    """Which items, and how many at once."""

    model_config = ConfigDict(extra="forbid")

    cursor: str | None = Field(
        None, max_length=200, description="Of the page before; without it the first one."
    )
    q: str | None = Field(
        None,
        max_length=200,
        description="Words; items are listed whose id and attributes have all of them, each as the "
        "beginning of a word, whatever the case and the accents.",
        examples=["star wars"],
    )
    limit: int = Field(100, ge=1, le=1000)


class ItemsPage(BaseModel):
    """Items in the order in which they came to the catalogue."""

    items: list[CatalogueItem]
    next: str | None = Field(description="The cursor of the next page; null at the end.")


@router.get(
    "/items",
    summary="List the catalogue, or find items by words",
    responses=problems(400, 422, 501, 503, 504),
)
async def list_items(
    query: Annotated[ListQuery, Query()], parts: Annotated[Parts, Depends(parts_of)]
) -> ItemsPage:
    """A page of items, hidden ones too.

    What comes or goes between two pages moves nothing: an item that is there all the time is
    listed once, a new one comes last.
    """
    page = await reading(parts, lambda items: items.page(query.limit, query.cursor, query.q))
    return ItemsPage(
        items=[
            CatalogueItem(
                item_id=each.item.item_id,
                attributes=each.item.attributes,
                hidden=each.hidden,
                version=each.version,
                views=parts.store.views_of(each) or [],
            )
            for each in page.items
        ],
        next=page.cursor,
    )


class Lines(StreamingResponse):
    """Lines for a client that reads them: one that takes nothing for `patience_s` is left.

    Args:
        running: those that are being sent.
    """

    def __init__(
        self, lines: AsyncGenerator[bytes, None], patience_s: float, running: set[object]
    ) -> None:
        super().__init__(
            lines,
            media_type=MEDIA_TYPE,
            headers={"content-disposition": 'attachment; filename="items.jsonl"'},
        )
        self._lines = lines
        self._patience_s = patience_s
        self._running = running

    async def stream_response(self, send: Send) -> None:
        """Send all, and let what the lines come from go, whatever happens."""

        async def patiently(message: Message) -> None:
            try:
                async with asyncio.timeout(self._patience_s):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        self._running.add(self)
        try:
            await super().stream_response(patiently)
        finally:
            self._running.discard(self)
            await self._lines.aclose()


@router.get(
    "/items:export",
    response_class=StreamingResponse,
    summary="All items, a JSON object a line",
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        **problems(400, 429, 503),
    },
)
async def export_items(
    parts: Annotated[Parts, Depends(parts_of)], serving: Annotated[Serving, Depends(serving_of)]
) -> Lines:
    """The catalogue at one moment, whatever is written meanwhile, as POST /items:import reads it.

    A line has `item_id`, `attributes`, `hidden` and `version`. An answer that ends without its
    last chunk was broken off. It has no deadline; a client that reads nothing for
    LLMEMB_REQUEST_TIMEOUT_S is left.
    """
    if len(serving.exports) >= EXPORTS:
        raise Overloaded(f"{len(serving.exports)} exports are under way", retry_after_s=10)
    export = parts.store.items.export(AT_ONCE)
    return Lines(_exported(export), serving.settings.request_timeout_s, serving.exports)


async def _exported(export: Generator[Sequence[Stored], None, None]) -> AsyncGenerator[bytes, None]:
    def some() -> bytes:
        return b"".join(_line(each) for each in next(export, ()))

    try:
        while lines := await run_in_threadpool(some):
            for start in range(0, len(lines), PIECE_BYTES):
                yield lines[start : start + PIECE_BYTES]
    finally:
        # Not left to the end of the generator's life: it keeps the log from being shortened. And
        # not awaited: where the client has left, so has all that waits.
        export.close()


def _line(stored: Stored) -> bytes:
    told: Mapping[str, Any] = {
        "item_id": stored.item.item_id,
        "attributes": stored.item.attributes,
        "hidden": stored.hidden,
        "version": stored.version,
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
