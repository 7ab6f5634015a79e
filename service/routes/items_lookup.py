"""Some items of the catalogue by their ids."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from models.item import MAX_ID_BYTES
from service.errors import problems
from service.requests import JSONRoute
from service.routes.items import CatalogueItem
from service.serving import Parts, parts_of, reading

router = APIRouter(route_class=JSONRoute, tags=["items"])


class LookupRequest(BaseModel):
    """Which items."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"item_ids": ["ml-1", "ml-50"]}]},
    )

    item_ids: list[Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]] = Field(
        min_length=1, max_length=1000
    )


class LookupResponse(BaseModel):
    """What the catalogue has of them."""

    items: list[CatalogueItem] = Field(description="In the order of the ids, each once.")
    unknown: list[str] = Field(description="Ids that the catalogue lacks.")


@router.post(
    "/items:lookup",
    summary="Look some items up",
    responses=problems(400, 413, 415, 422, 503, 504),
)
async def look_up(
    body: LookupRequest, parts: Annotated[Parts, Depends(parts_of)]
) -> LookupResponse:
    """Attributes of up to 1000 items, such as those of an answer of POST /recommend."""
    ids = list(dict.fromkeys(body.item_ids))
    known = await reading(parts, lambda items: items.get_many(ids))
    return LookupResponse(
        items=[
            CatalogueItem(
                item_id=item_id,
                attributes=each.item.attributes,
                hidden=each.hidden,
                version=each.version,
                views=parts.store.views_of(each) or [],
            )
            for item_id, each in zip(ids, known, strict=True)
            if each
        ],
        unknown=[item_id for item_id, each in zip(ids, known, strict=True) if each is None],
    )
