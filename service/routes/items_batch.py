"""Some items in one request."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from service.catalogue import require
from service.errors import MOST_ERRORS, FieldError, Invalid, problems
from service.incoming import IncomingItem, Readying, checked, require_active, require_bundle
from service.requests import JSONRoute
from service.routes.embed import FILM
from service.rows import Entry, Outcome
from service.serving import Parts, Serving, on_disk, parts_of, serving_of
from service.settings import MAX_ITEMS
from service.versions import ALWAYS, exactly

HELD_BACK_S = 5.0  # at most, while the index is far behind

router = APIRouter(route_class=JSONRoute, tags=["items"])


class BatchItem(IncomingItem):
    """An item of a batch."""

    if_version: int | None = Field(
        None,
        ge=0,
        description="Only if the item has this version; 0: only if it is not there. Else 412.",
    )


class BatchRequest(BaseModel):
    """Items to put into the catalogue."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"items": [FILM], "atomic": False}]},
    )

    # Each is looked at by itself, so that one that is wrong does not keep the others out.
    items: list[SkipValidation[BatchItem]] = Field(
        min_length=1,
        max_length=MAX_ITEMS,
        description="At most `max_items` of GET /info, each id once.",
    )
    atomic: bool = Field(
        False,
        description="Whether to write all or none: then anything that is wrong is the answer to "
        "the whole request.",
    )
    bundle: str | None = Field(
        None, max_length=200, description="`bundle` of GET /info, to which the vectors belong."
    )


class BatchResult(BaseModel):
    """What became of one item."""

    item_id: str | None = Field(description="null where none could be read.")
    status: int = Field(
        description="201: new. 200: it stands there so now. 422: it cannot be used. 412: "
        "`if_version` does not hold.",
        examples=[201],
    )
    version: int | None = Field(description="Of the item now; null where none is there.")
    changed: bool
    errors: list[FieldError] = []


class BatchResponse(BaseModel):
    """Results in the order of the request."""

    bundle: str = Field(description="Hash of all that changes an answer.")
    failed: int = Field(description="How many of the items were not written.")
    results: list[BatchResult]


@router.post(
    "/items:batch",
    summary="Add or change some items",
    responses=problems(400, 409, 412, 413, 415, 422, 429, 501, 503, 504, 507),
)
async def put_batch(
    query: BatchRequest,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> BatchResponse:
    """Have items in the catalogue, by one commit: durable and recommendable when the answer comes.

    Each item has a result of its own. With `atomic` all are written or none.
    """
    started = time.perf_counter()
    if query.atomic:
        require(parts.store, "atomic")
    most = serving.settings.max_items
    if len(query.items) > most:
        raise Invalid.field("items", f"has {len(query.items)} items; at most {most} may come")
    items = _read(list(query.items))
    if any(isinstance(each, BatchItem) and each.vectors is not None for each in items):
        require_bundle(query.bundle, parts.bundle.bundle_hash)
    require_active(query.bundle, parts.bundle.bundle_hash)
    sound = [(at, each) for at, each in enumerate(items) if isinstance(each, BatchItem)]
    if not query.atomic or len(sound) == len(items):
        ready = await Readying(parts.bundle, parts.embedder).entries(
            [each for _, each in sound], [f"items[{at}]" for at, _ in sound]
        )
    else:
        ready = []  # there is something to refuse; the LLM need not run
    made: dict[int, Entry | Invalid] = dict(zip([at for at, _ in sound], ready, strict=False))
    wrong = {at: each for at, each in enumerate(items) if isinstance(each, Invalid)}
    wrong |= {at: each for at, each in made.items() if isinstance(each, Invalid)}
    if query.atomic and wrong:
        raise _together([wrong[at] for at in sorted(wrong)])
    entries = {at: each for at, each in made.items() if isinstance(each, Entry)}
    conditions = [
        ALWAYS if each.if_version is None else exactly(each.if_version)
        for at, each in sound
        if at in entries
    ]
    await asyncio.to_thread(parts.store.hold_back, HELD_BACK_S)
    outcomes = await on_disk(
        parts,
        lambda: parts.store.put(list(entries.values()), conditions, atomic=query.atomic),
    )
    serving.metrics.to_recommendable.observe(time.perf_counter() - started)
    done = dict(zip(entries, outcomes, strict=True))
    results = [
        _refused(query.items[at], wrong[at]) if at in wrong else _result(at, entries[at], done[at])
        for at in range(len(items))
    ]
    return BatchResponse(
        bundle=parts.bundle.bundle_hash,
        failed=sum(each.status >= 400 for each in results),
        results=results,
    )


def _read(raw: Sequence[object]) -> list[BatchItem | Invalid]:
    found: list[BatchItem | Invalid] = []
    seen: set[str] = set()
    for at, each in enumerate(raw):
        try:
            item = checked(BatchItem, each, "items", at)
            if item.item_id in seen:
                raise Invalid.field(f"items[{at}].item_id", "stands twice", item.item_id)
            seen.add(item.item_id)
            found.append(item)
        except Invalid as error:
            found.append(error)
    return found


def _together(errors: Sequence[Invalid]) -> Invalid:
    more = f" (and {len(errors) - 1} more items)" if len(errors) > 1 else ""
    return Invalid(
        f"{errors[0]}{more}; nothing was changed",
        errors=[field for each in errors for field in each.errors][:MOST_ERRORS],
    )


def _refused(raw: Any, error: Invalid) -> BatchResult:  # noqa: ANN401 - any JSON
    item_id = raw.get("item_id") if isinstance(raw, dict) else None
    return BatchResult(
        item_id=item_id if isinstance(item_id, str) else None,
        status=422,
        version=None,
        changed=False,
        errors=error.errors,
    )


def _result(at: int, entry: Entry, outcome: Outcome) -> BatchResult:
    errors = []
    status = 201 if outcome.created else 200
    if outcome.refused:
        status = 412
        errors = [
            FieldError(field=f"items[{at}].if_version", message=f"the item {outcome.refused}")
        ]
    return BatchResult(
        item_id=entry.item.item_id,
        status=status,
        version=outcome.version,
        changed=outcome.changed,
        errors=errors,
    )
