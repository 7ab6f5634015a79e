"""Items for a history, and items near a vector."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from models.item import MAX_ID_BYTES
from service.errors import Invalid, problems
from service.explain import attribute_shares
from service.incoming import LARGEST, require_active
from service.index import Floats
from service.requests import JSONRoute
from service.serving import Parts, Serving, on_disk, parts_of, serving_of

router = APIRouter(route_class=JSONRoute, tags=["recommend"])

ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
K = Annotated[int, Field(ge=1, le=500, description="How many items.")]
ForBundle = Annotated[
    str | None,
    Field(
        max_length=200,
        description="`bundle` of GET /info: only if that bundle is active, else 409. Vectors of "
        "one bundle mean nothing in another.",
    ),
]
MAX_EXPLAINED = 10  # items whose attributes are explained in one answer
Exclude = Annotated[
    list[ItemId], Field(max_length=10_000, description="Ids that are not to be answered.")
]


class RecommendRequest(BaseModel):
    """A user's history, and what is wanted."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"history": ["ml-1", "ml-50"], "k": 10}]},
    )

    history: list[ItemId] = Field(
        min_length=1,
        max_length=1000,
        description="Item ids, oldest first; the model reads the latest `max_history`.",
    )
    k: K = 25
    exclude: Exclude = []
    exclude_history: bool = Field(True, description="Whether to leave the history's items out.")
    explain: Literal["none", "history", "attributes"] = Field(
        "none",
        description="`history` tells of each item which item of the history is nearest to it; "
        "`attributes` tells also what its attributes add to its score, and runs the LLM once for "
        f"each of them: k may be {MAX_EXPLAINED} at most.",
    )
    bundle: ForBundle = None


class ScoredItem(BaseModel):
    """An item and its score; higher is better."""

    item_id: str = Field(examples=["ml-181"])
    score: float = Field(examples=[4.2])


class RecommendedItem(ScoredItem):
    """A recommended item, and why it is, if that was asked for."""

    because: str | None = Field(
        None, description="The item of the history that is nearest to it.", examples=["ml-50"]
    )
    attributes: dict[str, float] | None = Field(
        None,
        description="By how much the score falls without each attribute; empty for an item that "
        "has only one.",
        examples=[{"title": 0.4, "genres": 1.1}],
    )


class RecommendResponse(BaseModel):
    """Items, best first; ties by id."""

    bundle: str = Field(description="Hash of all that changes an answer.")
    recommendation_id: str = Field(description="Of this answer, to join later events to it.")
    items: list[RecommendedItem]
    unknown_history: list[str] = Field(description="Ids of the history that were skipped.")
    degraded: list[str] = Field(
        description="`fewer_than_k`: no more items are allowed. `cache`: Redis cannot be reached.",
        examples=[[]],
    )
    took_ms: float


class SearchRequest(BaseModel):
    """A query vector of one view."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"view": "text", "vector": [0.1, 0.2], "k": 10}]},
    )

    view: str = Field(description="A view of GET /info.")
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(
        min_length=1, max_length=65_536, description="As wide as the view."
    )
    k: K = 25
    exclude: Exclude = []
    bundle: ForBundle = None


class SearchResponse(BaseModel):
    """Items by inner product, best first; ties by id."""

    bundle: str
    view: str
    items: list[ScoredItem]
    degraded: list[str] = Field(
        description="`fewer_than_k`: no more items are allowed.", examples=[[]]
    )
    took_ms: float

    @classmethod
    def of(
        cls, bundle: str, view: str, found: Sequence[tuple[str, float]], k: int, started: float
    ) -> "SearchResponse":
        """The answer of a search for k items that began at a time.perf_counter()."""
        return cls(
            bundle=bundle,
            view=view,
            items=[ScoredItem(item_id=item_id, score=score) for item_id, score in found],
            degraded=["fewer_than_k"] * (len(found) < k),
            took_ms=round(1000 * (time.perf_counter() - started), 3),
        )


@router.post(
    "/recommend",
    response_model_exclude_none=True,
    summary="Recommend items for a history",
    responses=problems(400, 404, 409, 413, 415, 422, 429, 503, 504),
)
async def recommend(
    query: RecommendRequest,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> RecommendResponse:
    """The k items most likely to follow this history.

    Every item of the catalogue can come, also one that was added a moment ago. Ids that the
    catalogue does not know are skipped and listed; 404 only if it knows none.
    """
    started = time.perf_counter()
    require_active(query.bundle, parts.bundle.bundle_hash)
    if query.explain == "attributes" and query.k > MAX_EXPLAINED:
        raise Invalid.field(
            "k", f"must be {MAX_EXPLAINED} at most where attributes are explained", query.k
        )
    ranked = await parts.recommender.recommend(
        query.history, query.k, query.exclude, query.exclude_history, query.explain != "none"
    )
    items = [RecommendedItem(item_id=item_id, score=score) for item_id, score in ranked.items]
    for item, nearest in zip(items, ranked.because or (), strict=False):
        item.because = nearest
    if query.explain == "attributes":
        await _explain(items, ranked.queries, parts)
    reasons = {
        "unknown_history": bool(ranked.unknown),
        "fewer_than_k": len(items) < query.k,
    }
    for reason, applies in reasons.items():
        serving.metrics.fallback.labels(reason).inc(applies)
    degraded = ["fewer_than_k"] * reasons["fewer_than_k"] + ["cache"] * parts.cache.degraded
    return RecommendResponse(
        bundle=parts.bundle.bundle_hash,
        recommendation_id=uuid.uuid4().hex,
        items=items,
        unknown_history=ranked.unknown,
        degraded=degraded,
        took_ms=round(1000 * (time.perf_counter() - started), 3),
    )


async def _explain(
    items: Sequence[RecommendedItem], queries: Mapping[str, Floats], parts: Parts
) -> None:
    ids = [item.item_id for item in items]
    known = await on_disk(parts, lambda: parts.store.get_many(ids))
    # An item may have gone since it was ranked.
    there = [(item, each.item) for item, each in zip(items, known, strict=True) if each]
    shares = await attribute_shares(
        parts.bundle, parts.embedder, [each for _, each in there], queries
    )
    for (item, _), share in zip(there, shares, strict=True):
        item.attributes = share


@router.post(
    "/search",
    summary="Find the items nearest to a vector",
    responses=problems(400, 409, 413, 415, 422, 503, 504),
)
async def search(
    query: SearchRequest, parts: Annotated[Parts, Depends(parts_of)]
) -> SearchResponse:
    """The k items with the largest inner product with a vector, in one view.

    For a recommender of one's own: its user vector in, item ids out.
    """
    started = time.perf_counter()
    require_active(query.bundle, parts.bundle.bundle_hash)
    view = parts.bundle.views.get(query.view)
    if view is None:
        raise Invalid.field("view", f"must be one of {', '.join(parts.bundle.views)}", query.view)
    if len(query.vector) != view.width:
        raise Invalid.field(
            "vector",
            f"view {view.name!r} has vectors of {view.width} numbers; got {len(query.vector)}",
        )
    vector = np.array(query.vector, np.float64)
    if np.abs(vector).max() > LARGEST:
        raise Invalid.field("vector", f"holds a number beyond {LARGEST:g}; scores would overflow")
    found = await parts.recommender.search(
        view.name, vector.astype(np.float32), query.k, query.exclude
    )
    return SearchResponse.of(parts.bundle.bundle_hash, view.name, found, query.k, started)
