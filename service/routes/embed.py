"""Vectors of items that come with the request."""

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from models.item import Item
from service.catalogue import require
from service.embedder import Embedded
from service.errors import Forbidden, Invalid, problems
from service.incoming import LLM
from service.index import Floats
from service.requests import JSONRoute
from service.rows import Entry
from service.serving import Parts, Serving, on_disk, parts_of, serving_of
from service.settings import MAX_ITEMS

router = APIRouter(route_class=JSONRoute, tags=["embed"])

FILM: dict[str, JsonValue] = {
    "item_id": "ml-1",
    "attributes": {
        "title": "Toy Story",
        "release_year": "1995",
        "genres": ["Animation", "Children's", "Comedy"],
    },
}


class EmbedRequest(BaseModel):
    """Items to embed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"items": [FILM]}]}
    )

    items: list[Item] = Field(
        min_length=1,
        max_length=MAX_ITEMS,
        description="At most `max_items` of GET /info, each id once.",
    )
    view: str | None = Field(
        None,
        description="Answer this view alone: one that is made of attributes, or `llm` for the "
        "LLM's own vector. Without it, every view that the item has.",
        examples=["text"],
    )
    encoding: Literal["float", "base64"] = Field(
        "float",
        description="How vectors are written: numbers, or base64 of little-endian 32-bit floats.",
    )
    index: bool = Field(False, description="Also put the items into the catalogue, all or none.")


class EmbeddedItem(BaseModel):
    """An item's vectors and what the LLM read of it."""

    item_id: str
    vectors: dict[str, list[float] | str] = Field(
        description="By view; strings where `encoding` is `base64`.",
        examples=[{"text": [0.1, 0.2]}],
    )
    tokens: int = Field(description="Of the item's own text that the LLM read.", examples=[18])
    truncated: list[str] = Field(
        description="Attributes that lost text to the token limit.", examples=[["description"]]
    )
    cached: bool = Field(description="Whether the LLM had read this text before.")


class EmbedResponse(BaseModel):
    """Vectors in the order of the request."""

    bundle: str = Field(description="Hash of all that changes an answer.")
    encoder: str = Field(description="Hash of what turned text into LLM vectors.")
    results: list[EmbeddedItem]


def _check(query: EmbedRequest, parts: Parts, max_items: int) -> None:
    if len(query.items) > max_items:
        raise Invalid.field("items", f"has {len(query.items)} items; at most {max_items} may come")
    if query.view is not None:
        known = [*parts.bundle.open_views, LLM]
        if query.view not in known:
            raise Invalid.field("view", f"must be one of {', '.join(known)}", query.view)
    seen: set[str] = set()
    for position, item in enumerate(query.items):
        if item.item_id in seen:
            raise Invalid.field(f"items[{position}].item_id", "stands twice", item.item_id)
        seen.add(item.item_id)


def written(vector: Floats, encoding: str) -> list[float] | str:
    """A vector (W,) as JSON has it."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def _vectors(each: Embedded, query: EmbedRequest) -> dict[str, list[float] | str]:
    views = each.views if query.view is None else {LLM: each.llm_vector, **each.views}
    return {
        name: written(vector, query.encoding)
        for name, vector in views.items()
        if query.view in (None, name)
    }


def entries(embedded: Sequence[Embedded]) -> list[Entry]:
    """What the catalogue stores of embedded items."""
    return [Entry(each.item, each.llm_vector, each.views) for each in embedded]


@router.post(
    "/embed",
    summary="Embed items",
    responses=problems(400, 413, 415, 422, 429, 501, 503, 504, 507),
)
async def embed(
    query: EmbedRequest,
    request: Request,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> EmbedResponse:
    """The vectors of items from their attributes, in every view that each item has.

    An item needs no history and need not be in the catalogue. With `index` the items are also
    in the catalogue, durably and recommendable, when the answer comes.
    """
    if query.index and "write" not in request.state.scopes:
        raise Forbidden("`index: true` changes the catalogue, and so needs the scope write")
    started = time.perf_counter()
    if query.index and len(query.items) > 1:
        require(parts.store, "atomic")
    _check(query, parts, serving.settings.max_items)
    embedded = await parts.embedder.embed(query.items)
    if query.index:
        await on_disk(parts, lambda: parts.store.put(entries(embedded)))
        serving.metrics.to_recommendable.observe(time.perf_counter() - started)
    return EmbedResponse(
        bundle=parts.bundle.bundle_hash,
        encoder=parts.bundle.encoder_hash,
        results=[
            EmbeddedItem(
                item_id=each.item.item_id,
                vectors=_vectors(each, query),
                tokens=each.tokens,
                truncated=list(each.cut),
                cached=each.cached,
            )
            for each in embedded
        ],
    )
