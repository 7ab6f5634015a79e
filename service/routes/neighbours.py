"""What stands near an item."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Match
from starlette.types import Scope

from service.errors import Invalid, problems
from service.requests import JSONRoute, asks_for_neighbours, decode, item_id_of_neighbours
from service.routes.items import ID_PARAMETER, unknown
from service.routes.recommend import K, SearchResponse
from service.serving import Parts, asked, parts_of


class NeighboursRoute(JSONRoute):
    """A route of paths that end in /neighbours as they were sent.

    Routing sees paths decoded, where the item `a/neighbours` and the neighbours of `a` are one.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route answers."""
        return super().matches(scope) if asks_for_neighbours(scope) else (Match.NONE, {})


router = APIRouter(route_class=NeighboursRoute, tags=["items"])


class NeighboursQuery(BaseModel):
    """In which view, and how many."""

    model_config = ConfigDict(extra="forbid")

    view: str | None = Field(
        None,
        description="A view of GET /info. Without it, `content` where there is one, else the first "
        "that every item has.",
    )
    k: K = 25
    filter: str | None = Field(
        None,
        description="As of POST /search, in JSON: only items that match.",
        examples=['{"attribute": "genres", "eq": "Comedy"}'],
    )


@router.get(
    "/items/{item_id:path}/neighbours",
    summary="Find the items nearest to an item",
    responses=problems(400, 404, 422, 429, 503, 504),
    openapi_extra={"parameters": [ID_PARAMETER]},
)
async def neighbours(
    item_id: Annotated[str, Depends(item_id_of_neighbours)],
    query: Annotated[NeighboursQuery, Query()],
    parts: Annotated[Parts, Depends(parts_of)],
) -> SearchResponse:
    """The k items with the largest inner product with an item, in one view, itself left out.

    An id that itself ends in `/neighbours` is looked up with its slash as `%2F`.
    """
    started = time.perf_counter()
    views = await asked(parts, lambda store: store.holding([item_id]).views(item_id))
    if views is None:
        raise unknown(item_id)
    view = query.view or parts.recommender.alike
    if view not in parts.bundle.views:
        raise Invalid.field("view", f"must be one of {', '.join(parts.bundle.views)}", view)
    if view not in views:
        raise Invalid.field("view", f"item {item_id!a} has only {', '.join(views)}", view)
    told = None if query.filter is None else decode(query.filter.encode(), "filter")
    matching = await asked(parts, lambda store: store.filter_of(told))
    # A copy: the search is later, and the vector lives no longer than the snapshot.
    vector = views[view].copy()
    found = await parts.recommender.search(view, vector, query.k, [item_id], matching)
    return SearchResponse.of(parts.bundle.bundle_hash, view, found, query.k, started)
