"""Items for a history, and items near a vector."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from models.item import Popularity
from service.errors import Invalid, problems
from service.explain import attribute_shares
from service.filters import LOWER, MAX_VALUES, UPPER
from service.incoming import LARGEST, require_active
from service.index import Floats
from service.inline import HistoryElement, ItemId, seen
from service.recommender import FALLBACK_DIVERSITY, Strategy, Used
from service.requests import JSONRoute
from service.serving import Parts, Serving, asked, parts_of, reading, serving_of

router = APIRouter(route_class=JSONRoute, tags=["recommend"])

K = Annotated[int, Field(ge=1, le=500, description="How many items.")]
FILTER = {
    "and": [
        {"attribute": "genres", "in": ["Comedy", "Drama"]},
        {"attribute": "release_year", "gte": "1990", "lt": "2000"},
    ]
}
ForBundle = Annotated[
    str | None,
    Field(
        max_length=200,
        description="`bundle` of GET /info: only if that bundle is active, else 409. To be told "
        "with vectors, which mean nothing in another.",
    ),
]
MAX_EXPLAINED = 10  # items whose attributes are explained in one answer
Exclude = Annotated[
    list[ItemId], Field(max_length=10_000, description="Ids that are not to be answered.")
]
SCALAR = {"type": ["string", "number", "boolean"]}
Filtering = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "properties": {
                "attribute": {"type": "string"},
                "eq": SCALAR,
                "in": {"type": "array", "items": SCALAR, "maxItems": MAX_VALUES},
                **{name: {"type": ["string", "number"]} for name in (*LOWER, *UPPER)},
                "exists": {"type": "boolean"},
                "and": {"type": "array", "items": {"type": "object"}, "minItems": 1},
                "or": {"type": "array", "items": {"type": "object"}, "minItems": 1},
                "not": {"type": "object"},
            },
            "additionalProperties": False,
        }
    ),
    Field(
        description="Only items that match: a condition on an attribute, or filters joined by "
        "`and`, `or`, `not`. A list matches if one of its members does.",
        examples=[FILTER],
    ),
]


class RecommendRequest(BaseModel):
    """A user's history, and what is wanted."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"history": ["ml-1", "ml-50"], "k": 10}]},
    )

    history: list[HistoryElement] = Field(
        max_length=1000,
        description="Oldest first; the model reads the latest `max_history`. Item ids, or items "
        "that need not be in the catalogue, by their attributes or vectors. Empty for somebody "
        "who is not known.",
    )
    bundle: ForBundle = None
    k: K = 25
    exclude: Exclude = []
    exclude_history: bool = Field(True, description="Whether to leave the history's items out.")
    filter: Filtering = None
    explain: Literal["none", "history", "attributes"] = Field(
        "none",
        description="`history` tells of each item which item of the history is nearest to it; "
        "`attributes` tells also what its attributes add to its score, and runs the LLM once for "
        f"each of them: k may be {MAX_EXPLAINED} at most. What is popular is so without reasons.",
    )
    strategy: Strategy = Field(
        "best",
        description="One of `strategies` of GET /info. `best`: all that the bundle knows. "
        "`popular`: most interactions in training, whatever the history. `id_only`: only the "
        "views that training items alone have (source `table`), by which others are not found. "
        "`text_only`: only the views that come of attributes.",
    )
    diversity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How much an item that is like one before it loses by that (maximal marginal "
        "relevance): 0 nothing, 1 all but likeness is ignored. Scores stay as they are. Without it "
        f"0, and {FALLBACK_DIVERSITY} where `strategy` of the answer is `fallback`.",
    )
    explore: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The probability with which a place is given to the best `cold` item, or, "
        "where none is left, the best of the `tail`, that is among the best max(100, 4 k).",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,
        description="Of the places that are explored: the same request with the same seed has the "
        "same answer.",
    )


class ScoredItem(BaseModel):
    """An item and its score; higher is better."""

    item_id: str = Field(examples=["ml-181"])
    score: float = Field(examples=[4.2])


class RecommendedItem(ScoredItem):
    """A recommended item, and why it is, if that was asked for."""

    popularity: Popularity = Field(
        description="`head`: of the fifth of items with most interactions in training. `cold`: "
        "with none. `tail`: the rest.",
        examples=["tail"],
    )
    explored: bool | None = Field(
        None, description="`true` where the item has its place by `explore`.", examples=[True]
    )
    because: str | None = Field(
        None,
        description="The item of the history that is nearest to it; left out where that has no id, "
        "since it came by its attributes or vectors.",
        examples=["ml-50"],
    )
    because_at: int | None = Field(
        None,
        description="Where in `history` the item stands that is nearest to it, from 0 on.",
        examples=[1],
    )
    attributes: dict[str, float] | None = Field(
        None,
        description="By how much the score falls without each attribute; empty for an item that "
        "has only one.",
        examples=[{"title": 0.4, "genres": 1.1}],
    )


# All of an answer at once takes half the time of one by one.
RANKED = TypeAdapter(list[RecommendedItem])


class RecommendResponse(BaseModel):
    """Items, best first, where no `diversity` or `explore` says otherwise; ties by id.

    A `fallback` is diverse where no `diversity` is sent, too.
    """

    bundle: str = Field(description="Hash of all that changes an answer.")
    recommendation_id: str = Field(description="Of this answer, to join later events to it.")
    strategy: Used = Field(
        description="By which the items were found. `fallback`: nothing is known of the user, so "
        "it is what was popular in training, and not too many that are alike.",
        examples=["best"],
    )
    items: list[RecommendedItem]
    unknown_history: list[str] = Field(description="Ids of the history that were skipped.")
    degraded: list[str] = Field(
        description="`no_history`: `strategy` is `fallback`. "
        "`fewer_than_k`: no more items are allowed and match. `cache`: Redis cannot be reached.",
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
    filter: Filtering = None
    bundle: ForBundle = None


class SearchResponse(BaseModel):
    """Items by inner product, best first; ties by id."""

    bundle: str
    view: str
    items: list[ScoredItem]
    degraded: list[str] = Field(
        description="`fewer_than_k`: no more items are allowed and match.", examples=[[]]
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
    catalogue does not know are skipped and listed; 404 only if it knows nothing of the history,
    and not by the strategy `popular`. An empty history is answered with what is popular, and that
    is said.
    """
    started = time.perf_counter()
    require_active(query.bundle, parts.bundle.bundle_hash)
    if query.explain == "attributes" and query.k > MAX_EXPLAINED:
        raise Invalid.field(
            "k", f"must be {MAX_EXPLAINED} at most where attributes are explained", query.k
        )
    if query.strategy not in parts.recommender.strategies:
        known = ", ".join(parts.recommender.strategies)
        raise Invalid.field(
            "strategy", f"the bundle has no view for it; it has {known}", query.strategy
        )
    matching = await asked(parts, lambda store: store.filter_of(query.filter))
    ranked = await parts.recommender.recommend(
        await seen(
            query.history,
            query.bundle,
            serving.settings.max_items,
            parts.bundle,
            parts.embedder,
            with_attributes=parts.recommender.reads_attributes(query.strategy),
        ),
        query.k,
        query.exclude,
        query.exclude_history,
        query.explain != "none",
        matching=matching,
        strategy=query.strategy,
        diversity=query.diversity,
        explore=query.explore,
        seed=query.seed,
    )
    items = RANKED.validate_python(
        [
            {
                "item_id": item_id,
                "score": score,
                "popularity": parts.bundle.popularity(item_id),
                "explored": item_id in ranked.explored or None,
            }
            for item_id, score in ranked.items
        ]
    )
    for item, at in zip(items, ranked.because or (), strict=False):
        nearest = query.history[at]
        item.because = nearest if isinstance(nearest, str) else None
        item.because_at = at
    if query.explain == "attributes" and ranked.queries:
        await _explain(items, ranked.queries, parts)
    reasons = {
        "unknown_history": bool(ranked.unknown),
        "no_history": ranked.strategy == "fallback",
        "fewer_than_k": len(items) < query.k,
    }
    for reason, applies in reasons.items():
        serving.metrics.fallback.labels(reason).inc(applies)
    degraded = [each for each in ("no_history", "fewer_than_k") if reasons[each]]
    degraded += ["cache"] * parts.cache.degraded
    return RecommendResponse(
        bundle=parts.bundle.bundle_hash,
        recommendation_id=uuid.uuid4().hex,
        strategy=ranked.strategy,
        items=items,
        unknown_history=ranked.unknown,
        degraded=degraded,
        took_ms=round(1000 * (time.perf_counter() - started), 3),
    )


async def _explain(
    items: Sequence[RecommendedItem], queries: Mapping[str, Floats], parts: Parts
) -> None:
    ids = [item.item_id for item in items]
    known = await reading(parts, lambda items: items.get_many(ids))
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
    matching = await asked(parts, lambda store: store.filter_of(query.filter))
    found = await parts.recommender.search(
        view.name, vector.astype(np.float32), query.k, query.exclude, matching
    )
    return SearchResponse.of(parts.bundle.bundle_hash, view.name, found, query.k, started)
