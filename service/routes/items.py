"""The catalogue, item by item."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.item import MAX_ATTRIBUTES, AttributeValue, Item
from service.errors import Invalid, PreconditionFailed, UnknownItem, problems
from service.requests import JSONRoute, item_id_of
from service.routes.embed import FILM, entries
from service.rows import Outcome, Stored, written
from service.serving import Parts, Serving, on_disk, parts_of, reading, serving_of
from service.versions import ALWAYS, Condition, conditions_in, etag, exactly

router = APIRouter(route_class=JSONRoute, tags=["items"])

PATH = "/items/{item_id:path}"
ItemId = Annotated[str, Depends(item_id_of)]
PATCHES = 5  # of one request, while others change the item in between
ID_PARAMETER: dict[str, Any] = {
    "name": "item_id",
    "in": "path",
    "required": True,
    "description": "Percent-encoded; slashes, dots and unicode are fine.",
    "schema": {"type": "string", "examples": ["ml-1"]},
}
IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "description": "Only if the item has one of these ETags; `*`: only if it is there. Else 412.",
    "schema": {"type": "string", "examples": ['"3"']},
}
IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "`*`: only if the item is not there. Else 412, and 304 for a GET.",
    "schema": {"type": "string", "examples": ["*"]},
}
DOCUMENTED = {"parameters": [ID_PARAMETER, IF_MATCH, IF_NONE_MATCH]}
Attributes = Annotated[
    dict[str, AttributeValue],
    Field(
        min_length=1,
        max_length=MAX_ATTRIBUTES,
        description="What is known of the item; at least one must say something.",
    ),
]
TAG = {"ETag": {"description": "The version, in quotes.", "schema": {"type": "string"}}}


class PutItem(BaseModel):
    """All attributes of an item; those that stood there before are replaced."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"attributes": FILM["attributes"]}]},
    )

    attributes: Attributes
    hidden: bool | None = Field(
        None,
        description="Whether to keep the item out of all answers. Without it that stays as it is; "
        "a new item is not hidden.",
    )


class PatchItem(BaseModel):
    """What is to change of an item (RFC 7396): null takes out, what is not named stays."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"attributes": {"release_year": "1996", "genres": None}, "hidden": True}]
        },
    )

    attributes: dict[str, AttributeValue] | None = None
    hidden: bool | None = None


class CatalogueItem(BaseModel):
    """An item of the catalogue."""

    item_id: str = Field(examples=["ml-1"])
    attributes: Attributes
    hidden: bool = Field(
        description="Whether it is kept out of recommendations, searches and neighbours; it may "
        "stand in histories.",
        examples=[False],
    )
    version: int = Field(
        description="Grows with every change of the item, and never comes again; the ETag.",
        examples=[3],
    )
    views: list[str] = Field(description="That the item can be seen in.", examples=[["text"]])


class PutItemResponse(CatalogueItem):
    """An item as it stands in the catalogue now."""

    tokens: int = Field(description="Of the item's own text that the LLM read.", examples=[18])
    truncated: list[str] = Field(
        description="Attributes that lost text to the token limit.", examples=[["description"]]
    )
    created: bool = Field(description="Whether the catalogue did not know the item.")


async def condition_of(request: Request) -> Condition:
    """The condition of a request, as a dependency."""
    return conditions_in(request.headers.getlist)


ItemCondition = Annotated[Condition, Depends(condition_of)]


def unknown(item_id: str) -> UnknownItem:
    """The error for an id that the catalogue has not."""
    return UnknownItem(f"the catalogue has no item {item_id!a}")


def _item(item_id: str, attributes: dict[str, Any], body: object) -> Item:
    try:
        return Item(item_id=item_id, attributes=attributes)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors()], body=body
        ) from None


def _require(condition: Condition, item_id: str, version: int | None) -> None:
    if refused := condition.refusal(version):
        raise PreconditionFailed(f"item {item_id!a} {refused}")


@router.put(
    PATH,
    summary="Add or change an item",
    responses={
        200: {"headers": TAG},
        201: {"description": "The item is new.", "model": PutItemResponse, "headers": TAG},
        **problems(400, 412, 413, 415, 422, 429, 503, 504, 507),
    },
    openapi_extra=DOCUMENTED,
)
async def put_item(
    body: PutItem,
    item_id: ItemId,
    condition: ItemCondition,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
    response: Response,
) -> PutItemResponse:
    """Have an item in the catalogue: durable and recommendable when the answer comes.

    The same again changes nothing, its version neither.
    """
    item = _item(item_id, body.attributes, body.model_dump())
    started = time.perf_counter()
    if condition != ALWAYS:  # the LLM need not run for what will be refused
        stored = await reading(parts, lambda items: items.get(item_id))
        _require(condition, item_id, stored and stored.version)
    (embedded,) = await parts.embedder.embed([item], where="body")
    (entry,) = entries([embedded])
    entry = entry._replace(hidden=body.hidden)
    (outcome,) = await on_disk(parts, lambda: parts.store.put([entry], [condition]))
    assert outcome.version is not None  # noqa: S101 - it was written
    serving.metrics.to_recommendable.observe(time.perf_counter() - started)
    response.status_code = 201 if outcome.created else 200
    response.headers["etag"] = etag(outcome.version)
    return PutItemResponse(
        item_id=item_id,
        attributes=item.attributes,
        hidden=outcome.hidden,
        version=outcome.version,
        views=[name for name in parts.bundle.views if name in embedded.views],
        tokens=embedded.tokens,
        truncated=list(embedded.cut),
        created=outcome.created,
    )


@router.patch(
    PATH,
    summary="Change a part of an item",
    responses={
        200: {"headers": TAG},
        **problems(400, 404, 412, 413, 415, 422, 429, 503, 504, 507),
    },
    openapi_extra=DOCUMENTED,
)
async def patch_item(
    body: PatchItem,
    item_id: ItemId,
    condition: ItemCondition,
    parts: Annotated[Parts, Depends(parts_of)],
    response: Response,
) -> CatalogueItem:
    """Merge a patch (RFC 7396) into an item: null takes an attribute out, the others stay.

    Two patches at once are both done, one after the other. As `application/json` or
    `application/merge-patch+json`.
    """
    for _ in range(PATCHES):
        stored = await reading(parts, lambda items: items.get(item_id))
        if stored is None:
            raise unknown(item_id)
        _require(condition, item_id, stored.version)
        try:
            outcome, item, views = await _merge(body, stored, parts)
        except PreconditionFailed:
            continue  # somebody has changed it meanwhile
        assert outcome.version is not None  # noqa: S101 - it was there
        response.headers["etag"] = etag(outcome.version)
        return CatalogueItem(
            item_id=item_id,
            attributes=item.attributes,
            hidden=outcome.hidden,
            version=outcome.version,
            views=views,
        )
    raise PreconditionFailed(
        f"item {item_id!a} was changed {PATCHES} times while this was tried; send it again"
    )


async def _merge(body: PatchItem, stored: Stored, parts: Parts) -> tuple[Outcome, Item, list[str]]:
    """Merge a patch into an item that has not changed since it was read; and its views then."""
    item, only = stored.item, exactly(stored.version)
    hidden = bool(body.hidden) if "hidden" in body.model_fields_set else stored.hidden
    if "attributes" in body.model_fields_set:
        if body.attributes is None:
            raise Invalid.field("attributes", "cannot be taken out; DELETE takes the item out")
        merged = {**item.attributes, **body.attributes}
        kept = {
            name: value
            for name, value in merged.items()
            if value is not None or name not in body.attributes
        }
        item = _item(item.item_id, kept, body.model_dump(exclude_unset=True))
    if written(item) == written(stored.item):
        outcome = await on_disk(parts, lambda: parts.store.hide(item.item_id, hidden, only))
        return outcome, item, parts.store.views_of(stored) or []
    (entry,) = entries(await parts.embedder.embed([item], where="body"))
    entry = entry._replace(hidden=hidden)
    (outcome,) = await on_disk(parts, lambda: parts.store.put([entry], [only]))
    return outcome, item, [name for name in parts.bundle.views if name in entry.views]


@router.get(
    PATH,
    response_model=CatalogueItem,
    summary="Look an item up",
    responses={
        200: {"headers": TAG},
        304: {"description": "The item has a version of If-None-Match."},
        **problems(400, 404, 412, 422, 503, 504),
    },
    openapi_extra=DOCUMENTED,
)
async def get_item(
    item_id: ItemId,
    condition: ItemCondition,
    parts: Annotated[Parts, Depends(parts_of)],
    response: Response,
) -> CatalogueItem | Response:
    """An item's attributes, its version and the views it has."""
    stored = await reading(parts, lambda items: items.get(item_id))
    views = stored and parts.store.views_of(stored)
    if stored is None or views is None:
        raise unknown(item_id)
    _require(condition._replace(none_match=None), item_id, stored.version)
    response.headers["etag"] = etag(stored.version)
    if condition.refusal(stored.version):
        return Response(status_code=304, headers={"etag": etag(stored.version)})
    return CatalogueItem(
        item_id=item_id,
        attributes=stored.item.attributes,
        hidden=stored.hidden,
        version=stored.version,
        views=views,
    )


@router.delete(
    PATH,
    status_code=204,
    summary="Take an item out",
    responses=problems(400, 404, 412, 422, 503, 504, 507),
    openapi_extra=DOCUMENTED,
)
async def delete_item(
    item_id: ItemId, condition: ItemCondition, parts: Annotated[Parts, Depends(parts_of)]
) -> None:
    """Take an item out for good; it is not recommended any more when the answer comes."""
    if not await on_disk(parts, lambda: parts.store.delete(item_id, condition)):
        raise unknown(item_id)
