"""What the service is, whether it lives, whether it is ready, and its metrics."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from models.prompt import PromptTemplate
from service import version
from service.catalogue import Capability, Stats
from service.errors import NotReady, problems
from service.filters import MAX_CONDITIONS, MAX_VALUES
from service.serving import READY, Parts, Serving, counted, parts_of, serving_of

router = APIRouter(tags=["service"])

MOST_ATTRIBUTES = 200  # in one answer; a catalogue may have any number of names


class ViewInfo(BaseModel):
    """One named way to see an item as a vector."""

    name: str = Field(examples=["text"])
    width: int = Field(description="Numbers in its vectors.", examples=[128])
    source: str = Field(
        description="`projection` and `content`: any item has it. `table`: training items only.",
        examples=["projection"],
    )
    max_history: int = Field(description="Items of a history that the model reads.", examples=[50])
    weight: float = Field(description="In the sum of the views' scores.", examples=[0.5])


class Limits(BaseModel):
    """What one request may ask for."""

    max_items: int = Field(
        description="of one /embed, and with attributes in one history", examples=[64]
    )
    max_history: int = Field(1000, description="ids of one /recommend")
    max_k: int = 500
    max_exclude: int = 10_000
    max_filter_conditions: int = MAX_CONDITIONS
    max_filter_values: int = Field(MAX_VALUES, description="of all `in` of a filter")
    max_body_bytes: int
    max_tokens: int = Field(description="of one item's text that the LLM reads", examples=[512])
    request_timeout_s: float


class AttributeInfo(BaseModel):
    """An attribute by its name, over all items of the catalogue."""

    name: str = Field(examples=["genres"])
    kinds: dict[str, int] = Field(
        description="Of each kind - `string`, `number`, `boolean`, `list of strings` and so on, "
        "`list` where kinds are mixed - how many items have it.",
        examples=[{"list of strings": 1681}],
    )
    share: float = Field(
        description="Of the items, how many have it and it says something.", examples=[0.999]
    )


class CatalogueInfo(BaseModel):
    """What the catalogue holds now."""

    items: int = Field(examples=[1682])
    hidden: int = Field(description="Of these, kept out of all answers.", examples=[3])
    version: int = Field(
        description="The latest of an item; grows with every change. 0 where the store cannot tell."
    )
    filterable: list[str] | None = Field(
        description="The attributes that filters may name; null: all that items have.",
        examples=[["genres", "release_year"]],
    )
    attributes: list[AttributeInfo] = Field(
        description=f"The {MOST_ATTRIBUTES} that most items have, those first; empty where `lacks` "
        "says `attributes`."
    )
    lacks: dict[str, str] = Field(
        {},
        description="What this store (LLMEMB_STORE) cannot do, each with a sentence; asked for it "
        "the answer is 501. `words`: q of GET /items. `map`: GET /map. `atomic`: to write all or "
        "none of several items. `reindex`: POST /admin/bundles. `backup`: the command. "
        "`attributes`: to count them here.",
        examples=[{}],
    )


class Info(BaseModel):
    """What is served."""

    name: str = Field(description="Of the bundle.", examples=["ml-100k"])
    version: str = Field(description="Of the service.")
    bundle_version: str = Field(description="Of the software that exported the bundle.")
    bundle: str = Field(description="Hash of all that changes an answer.")
    encoder: str = Field(description="Hash of what turns text into LLM vectors.")
    llm: str = Field(description="The base LLM.", examples=["HuggingFaceTB/SmolLM2-135M-Instruct"])
    llm_dim: int = Field(description="Width of an LLM vector.", examples=[576])
    dtype: str = Field(description="What the LLM runs in here.", examples=["bfloat16"])
    views: list[ViewInfo]
    strategies: list[str] = Field(
        description="Of POST /recommend, that the bundle has views for.",
        examples=[["best", "popular", "id_only", "text_only"]],
    )
    template: PromptTemplate = Field(description="How an item becomes text.")
    parity: float = Field(
        description="Least cosine, at start, of a few items embedded alone, together and where "
        "the bundle was exported.",
        examples=[0.9998],
    )
    items: int = Field(description="In the catalogue now.", examples=[1682])
    training_items: int
    catalogue: CatalogueInfo
    limits: Limits
    metrics: dict[str, Any] = Field(description="Measured at export, with their protocol.")


class Live(BaseModel):
    """The process works."""

    status: str = Field("alive", examples=["alive"])


class Ready(BaseModel):
    """Requests will be answered."""

    status: str = Field("ready", examples=["ready"])
    items: int = Field(description="In the catalogue now.")
    degraded: list[str] = Field(
        description="What does not work but is not needed: `cache`.", examples=[[]]
    )


@router.get("/info", summary="What is served", responses=problems(503))
async def info(
    parts: Annotated[Parts, Depends(parts_of)], serving: Annotated[Serving, Depends(serving_of)]
) -> Info:
    """Bundle, views, limits and the figures measured at export."""
    bundle = parts.bundle
    manifest = bundle.manifest
    settings = serving.settings
    stats = await counted(serving, parts)
    return Info(
        name=manifest.name,
        version=version(),
        bundle_version=manifest.version,
        bundle=bundle.bundle_hash,
        encoder=bundle.encoder_hash,
        llm=manifest.llm.name,
        llm_dim=manifest.llm_dim,
        dtype=bundle.dtype,
        views=[
            ViewInfo(
                name=view.name,
                width=view.width,
                source=view.source,
                max_history=view.max_history,
                weight=view.weight,
            )
            for view in manifest.views
        ],
        strategies=list(parts.recommender.strategies),
        template=manifest.template,
        parity=parts.parity,
        items=stats.items,
        training_items=manifest.items,
        catalogue=_catalogue(stats, parts.store.filterable, parts.store.lacks),
        limits=Limits(
            max_items=settings.max_items,
            max_body_bytes=settings.max_body_bytes,
            max_tokens=manifest.max_tokens,
            request_timeout_s=settings.request_timeout_s,
        ),
        metrics=manifest.metrics,
    )


def _catalogue(
    stats: Stats, filterable: Collection[str] | None, lacks: Mapping[Capability, str]
) -> CatalogueInfo:
    kinds: dict[str, dict[str, int]] = {}
    for (name, kind), items in sorted(stats.kinds.items()):
        kinds.setdefault(name, {})[kind] = items
    # An item has one value of a name, and so one kind.
    totals = {name: sum(counts.values()) for name, counts in kinds.items()}
    first = sorted(totals, key=lambda name: (-totals[name], name))[:MOST_ATTRIBUTES]
    return CatalogueInfo(
        items=stats.items,
        hidden=stats.hidden,
        version=stats.changes,
        filterable=None if filterable is None else sorted(filterable),
        attributes=[
            AttributeInfo(name=name, kinds=kinds[name], share=round(totals[name] / stats.items, 4))
            for name in first
        ],
        lacks={**lacks},
    )


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", summary="Is the process worth keeping?", responses=problems(503))
async def live(serving: Annotated[Serving, Depends(serving_of)]) -> Live:
    """200 while inference can run or is being loaded; asks nothing outside the process.

    503 once inference has died, or one batch has run for longer than LLMEMB_STUCK_S.
    """
    if serving.illness:
        raise NotReady(serving.illness, retry_after_s=5)
    return Live()


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", summary="Will requests be answered?", responses=problems(503))
async def ready(serving: Annotated[Serving, Depends(serving_of)]) -> Ready:
    """200 once the bundle is loaded and the catalogue searchable; 503 names the phase.

    Redis is not needed: without it the service is ready and `degraded` says `cache`.
    """
    if serving.phase != READY or serving.illness:
        raise NotReady(serving.illness or serving.phase, retry_after_s=2)
    parts = serving.parts
    await parts.cache.check()
    stats = await counted(serving, parts)
    return Ready(items=stats.items, degraded=["cache"] if parts.cache.degraded else [])


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)
