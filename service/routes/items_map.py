"""Where the catalogue's items stand on a plane, as a page draws them."""

import asyncio
import zlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.item import AttributeValue
from service.catalogue import Items, require
from service.errors import Invalid, problems
from service.index import Floats, Places, Snapshot
from service.requests import JSONRoute
from service.rows import Stored
from service.serving import Parts, parts_of, reading

if TYPE_CHECKING:
    from models.bundle import Bundle

router = APIRouter(route_class=JSONRoute, tags=["items"])

AT_ONCE = 1000  # items read from the disk; in between, others write
DECIMALS = 4  # of a coordinate; more than a screen has points


class MapQuery(BaseModel):
    """Which attribute comes with the items, and of how many."""

    model_config = ConfigDict(extra="forbid")

    attribute: str | None = Field(
        None, description="Its values come, too, as `values`.", examples=["genres"]
    )
    limit: int = Field(
        20_000,
        ge=1,
        le=100_000,
        description="Of more items a sample comes, by a hash of the id: always the same, whatever "
        "else comes or goes.",
    )


class MapResponse(BaseModel):
    """Items in columns: what stands at one place of each is of one item."""

    bundle: str = Field(description="Hash of all that changes an answer.")
    view: str = Field(description="The view that is shown.", examples=["content"])
    total: int = Field(description="Items on the map; `ids` has `limit` of them at most.")
    ids: list[str] = Field(examples=[["ml-1", "ml-2"]])
    x: list[float] = Field(
        description="From -1 to 1: along the direction in which the training items' vectors differ "
        "most, and `y` next to most (PCA). Both have one scale.",
        examples=[[0.12, -0.5]],
    )
    y: list[float] = Field(examples=[[0.3, 0.07]])
    interactions: list[int] = Field(
        description="In training; 0 of an item that it did not know.", examples=[[452, 0]]
    )
    values: list[AttributeValue] | None = Field(
        None,
        description="Of the attribute that is asked for, as they stand; null where there is none.",
    )


TAG = {"ETag": {"description": "Changes with the catalogue.", "schema": {"type": "string"}}}


@router.get(
    "/map",
    response_model=MapResponse,
    response_model_exclude_none=True,
    summary="Draw the catalogue",
    responses={
        200: {"headers": TAG},
        304: {"description": "The catalogue is as it was for the ETag of If-None-Match."},
        **problems(400, 422, 501, 503, 504),
    },
)
async def catalogue_map(
    query: Annotated[MapQuery, Query()],
    parts: Annotated[Parts, Depends(parts_of)],
    request: Request,
    response: Response,
) -> MapResponse | Response:
    """Items that are not hidden, each where its view `content` puts it, or its first.

    New items have places as soon as they are in the catalogue.
    """
    require(parts.store, "map")
    stats = parts.store.stats
    tag = f'"{parts.bundle.bundle_hash[:16]}-{stats.changes}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}  # ask whether it has changed
    if query.attribute is not None and all(name != query.attribute for name, _ in stats.kinds):
        raise Invalid.field(
            "attribute",
            "no item has it; `catalogue` of GET /info tells which there are",
            query.attribute,
        )
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    snapshot = parts.store.holding(())
    total, ids, places = await asyncio.to_thread(_places, snapshot, parts.bundle, query.limit)
    values = None
    if query.attribute is not None:
        values = await _values(parts, ids, query.attribute)
    response.headers.update(headers)
    rows, interactions = parts.bundle.catalogue.rows, parts.bundle.interactions
    known = [rows.get(item_id) for item_id in ids]
    return MapResponse(
        bundle=parts.bundle.bundle_hash,
        view=parts.bundle.alike,
        total=total,
        ids=ids,
        x=places[:, 0].tolist(),
        y=places[:, 1].tolist(),
        interactions=[0 if row is None else int(interactions[row - 1]) for row in known],
        values=values,
    )


def _places(snapshot: Snapshot, bundle: "Bundle", limit: int) -> tuple[int, list[str], Floats]:
    """How many items are on the map, and of some of them ids and places (n, 2)."""
    shown = np.flatnonzero(snapshot.allowed(np.empty(0, np.int64)))
    shown = shown[snapshot.present(bundle.alike, shown)]
    ids = [snapshot.item_id(place) for place in shown.tolist()]
    some: Places = np.arange(len(ids))
    if len(ids) > limit:
        order = np.array([zlib.crc32(item_id.encode()) for item_id in ids])
        some = np.sort(np.argsort(order, kind="stable")[:limit])
    places = bundle.plane.places(snapshot.vectors(bundle.alike, shown[some])).astype(np.float64)
    return len(ids), [ids[at] for at in some.tolist()], np.round(places, DECIMALS)


async def _values(parts: Parts, ids: Sequence[str], attribute: str) -> list[AttributeValue]:
    found: list[AttributeValue] = []
    for start in range(0, len(ids), AT_ONCE):
        some = partial(_of, item_ids=ids[start : start + AT_ONCE])
        stored = await reading(parts, some)
        # An item may have gone meanwhile.
        found += [each.item.attributes.get(attribute) if each else None for each in stored]
    return found


def _of(items: Items, item_ids: Sequence[str]) -> list[Stored | None]:
    return items.get_many(item_ids)
