"""The catalogue, item by item."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.item import MAX_ATTRIBUTES, AttributeValue, Item
from service.errors import UnknownItem, problems
from service.requests import JSONRoute, item_id_of
from service.routes.embed import FILM, entries
from service.serving import Parts, Serving, on_disk, parts_of, serving_of

router = APIRouter(route_class=JSONRoute, tags=["items"])

PATH = "/items/{item_id:path}"
ItemId = Annotated[str, Depends(item_id_of)]
DOCUMENTED = {
    "parameters": [
        {
            "name": "item_id",
            "in": "path",
            "required": True,
            "description": "Percent-encoded; slashes, dots and unicode are fine.",
            "schema": {"type": "string", "examples": ["ml-1"]},
        }
    ]
}
Attributes = Annotated[
    dict[str, AttributeValue],
    Field(
        min_length=1,
        max_length=MAX_ATTRIBUTES,
        description="What is known of the item; at least one must say something.",
    ),
]


class PutItem(BaseModel):
    """All attributes of an item; what stood there before is replaced."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"attributes": FILM["attributes"]}]},
    )

    attributes: Attributes


class CatalogueItem(BaseModel):
    """An item of the catalogue."""

    item_id: str = Field(examples=["ml-1"])
    attributes: Attributes
    views: list[str] = Field(description="That the item can be seen in.", examples=[["text"]])


class PutItemResponse(CatalogueItem):
    """An item as it stands in the catalogue now."""

    tokens: int = Field(description="Of the item's own text that the LLM read.", examples=[18])
    truncated: list[str] = Field(
        description="Attributes that lost text to the token limit.", examples=[["description"]]
    )
    created: bool = Field(description="Whether the catalogue did not know the item.")


@router.put(
    PATH,
    summary="Add or change an item",
    responses={
        201: {"description": "The item is new.", "model": PutItemResponse},
        **problems(400, 413, 415, 422, 429, 503, 504, 507),
    },
    openapi_extra=DOCUMENTED,
)
async def put_item(
    body: PutItem,
    item_id: ItemId,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
    response: Response,
) -> PutItemResponse:
    """Have an item in the catalogue: durable and recommendable when the answer comes.

    The same attributes again change nothing.
    """
    try:
        item = Item(item_id=item_id, attributes=body.attributes)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors()],
            body=body.model_dump(),
        ) from None
    started = time.perf_counter()
    (embedded,) = await parts.embedder.embed([item], where="body")
    (outcome,) = await on_disk(parts, lambda: parts.store.put(entries([embedded])))
    created = outcome.created
    serving.metrics.to_recommendable.observe(time.perf_counter() - started)
    response.status_code = 201 if created else 200
    return PutItemResponse(
        item_id=item_id,
        attributes=item.attributes,
        views=[name for name in parts.bundle.views if name in embedded.views],
        tokens=embedded.tokens,
        truncated=list(embedded.cut),
        created=created,
    )


@router.get(
    PATH,
    summary="Look an item up",
    responses=problems(400, 404, 422, 503, 504),
    openapi_extra=DOCUMENTED,
)
async def get_item(item_id: ItemId, parts: Annotated[Parts, Depends(parts_of)]) -> CatalogueItem:
    """An item's attributes and the views it has."""
    stored = await on_disk(parts, lambda: parts.store.get(item_id))
    views = parts.store.snapshot.views(item_id)
    if stored is None or views is None:
        raise UnknownItem(f"the catalogue has no item {item_id!a}")
    return CatalogueItem(item_id=item_id, attributes=stored.item.attributes, views=list(views))


@router.delete(
    PATH,
    status_code=204,
    summary="Take an item out",
    responses=problems(400, 404, 422, 503, 504, 507),
    openapi_extra=DOCUMENTED,
)
async def delete_item(item_id: ItemId, parts: Annotated[Parts, Depends(parts_of)]) -> None:
    """Take an item out for good; it is not recommended any more when the answer comes."""
    if not await on_disk(parts, lambda: parts.store.delete(item_id)):
        raise UnknownItem(f"the catalogue has no item {item_id!a}")
