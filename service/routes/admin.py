"""Which bundle is active, and another one in its place."""

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service import beside
from service.bundles import NAME, Bundles
from service.catalogue import require
from service.comparison import Comparison
from service.errors import UnknownBundle, UpgradeRunning, problems
from service.requests import JSONRoute
from service.serving import Parts, Serving, on_disk, parts_of, serving_of
from service.store import CatalogueStore
from service.upgrade import State, Upgrade

router = APIRouter(route_class=JSONRoute, tags=["bundles"])


class UpgradeRequest(BaseModel):
    """The bundle that is to be active."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"bundle": "2026-11"}]}
    )

    bundle: str | None = Field(
        None,
        pattern=NAME,
        description="The name of its folder in LLMEMB_BUNDLES_DIR; never a path.",
        examples=["2026-11"],
    )
    rollback: bool = Field(
        False,
        description="In place of `bundle`: the one that was active before. Nothing is compared, "
        "and only what has changed since has to be embedded.",
    )
    flip: bool = Field(
        True,
        description="Whether to have it active. Without, it is made ready and compared, and held; "
        "asked for again, it is active soon.",
    )
    accept_lost: bool = Field(
        False,
        description="Whether items of which the bundle can make no vector may go unseen. Without, "
        "it is held where there are any.",
    )

    @model_validator(mode="after")
    def _one_bundle(self) -> "UpgradeRequest":
        if (self.bundle is None) != self.rollback:
            raise ValueError("must name a bundle, or ask for rollback, and not both")
        return self


class UpgradeStatus(BaseModel):
    """How far the latest change to another bundle has come."""

    name: str = Field(description="Of its folder.")
    state: State = Field(
        description="`loading`, `embedding`, `indexing`, `comparing`, `flipping`; then `flipped`: "
        "it is active. `held`: it is ready, and `error` says why it is not active. `cancelled`, "
        "`failed`: nothing has changed; asked for again, it goes on where it was."
    )
    bundle: str | None = Field(description="Hash; null until it is loaded.")
    encoder: str | None = Field(description="Hash; null until it is loaded.")
    told: int = Field(description="Items of the catalogue that it has been told of.")
    left: int = Field(description="Items that it has not.")
    lost: int = Field(
        description="Items of which it can make no vector. They stay in the catalogue, and are not "
        "recommended while it is active."
    )
    lost_ids: list[str] = Field(description="The first 100 of them.")
    given: int = Field(
        description="Items that came with vectors of their own. In their place it has those that "
        "it makes of the attributes, until others are given."
    )
    comparison: Comparison | None
    error: str | None


class BundleInfo(BaseModel):
    """A bundle that may be asked for, or has been."""

    name: str | None = Field(
        description="Of its folder in LLMEMB_BUNDLES_DIR; null where it lies elsewhere."
    )
    bundle: str = Field(description="Hash, as its manifest says.")
    active: bool
    previous: bool = Field(description="Whether it was active before, and rollback leads to it.")


class BundlesInfo(BaseModel):
    """What is active, what might be, and what is on its way."""

    active: str = Field(description="Hash of the bundle that answers.")
    encoder: str = Field(description="Hash of its encoder.")
    bundles: list[BundleInfo]
    upgrade: UpgradeStatus | None = Field(
        description="The latest since the service was started; null where there was none."
    )


def _status(upgrade: Upgrade) -> UpgradeStatus:
    told = upgrade.progress
    return UpgradeStatus(
        name=upgrade.name,
        state=told.state,
        bundle=told.bundle_hash,
        encoder=told.encoder_hash,
        told=told.told,
        left=told.left,
        lost=told.lost,
        lost_ids=list(told.lost_ids),
        given=told.given,
        comparison=told.comparison,
        error=told.error,
    )


async def _previous(parts: Parts) -> str | None:
    store = parts.store
    if not isinstance(store, CatalogueStore):
        return None

    def read() -> str | None:
        with store.locked() as database:
            return beside.previous(database)

    return await on_disk(parts, read)


@router.get("/admin/bundles", summary="Which bundle is active?", responses=problems(503, 504))
async def get_bundles(
    parts: Annotated[Parts, Depends(parts_of)], serving: Annotated[Serving, Depends(serving_of)]
) -> BundlesInfo:
    """The bundle that answers, those of LLMEMB_BUNDLES_DIR, and how far a change has come."""
    active, previous = parts.bundle.bundle_hash, await _previous(parts)
    lying = await asyncio.to_thread(serving.bundles.lying)
    found: list[tuple[str | None, str]] = [(each.name, each.bundle_hash) for each in lying]
    hashes = {bundle_hash for _, bundle_hash in found}
    found += [(None, each) for each in (active, previous) if each and each not in hashes]
    return BundlesInfo(
        active=active,
        encoder=parts.bundle.encoder_hash,
        bundles=[
            BundleInfo(
                name=name,
                bundle=bundle_hash,
                active=bundle_hash == active,
                previous=bundle_hash == previous,
            )
            for name, bundle_hash in found
        ],
        upgrade=serving.upgrade and _status(serving.upgrade),
    )


@router.post(
    "/admin/bundles",
    status_code=202,
    summary="Have another bundle active, without downtime",
    responses=problems(400, 404, 409, 413, 415, 422, 501, 503, 504),
)
async def change_bundle(
    query: UpgradeRequest,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> UpgradeStatus:
    """Embed the catalogue anew beside the one that is served, compare both, and change over.

    The answer comes at once; GET /admin/bundles tells how far it has come. Requests are answered
    all the time, each by one bundle. The same again while it runs changes nothing.
    """
    require(parts.store, "reindex")
    name, folder = await _wanted(query, parts, serving.bundles)
    running = serving.upgrade
    if running and running.running:
        if running.name != name:
            raise UpgradeRunning(
                f"{running.name!a} is being made ready; wait, or cancel it", retry_after_s=10
            )
        return _status(running)
    serving.upgrade = Upgrade(
        serving,
        name,
        folder,
        back=query.rollback,
        flip=query.flip,
        accept_lost=query.accept_lost,
        loop=asyncio.get_running_loop(),
    )
    serving.upgrade.start()
    return _status(serving.upgrade)


async def _wanted(query: UpgradeRequest, parts: Parts, bundles: Bundles) -> tuple[str, Path]:
    """Name and folder of the bundle that is asked for."""
    if query.bundle is not None:
        return query.bundle, await asyncio.to_thread(bundles.named, query.bundle)
    previous = await _previous(parts)
    if previous is None:
        raise UnknownBundle("there is no bundle to go back to: none was active before this one")
    folder = await asyncio.to_thread(bundles.of, previous)
    if folder is None:
        raise UnknownBundle(
            f"the bundle that was active before, {previous[:12]}…, lies neither in "
            "LLMEMB_BUNDLES_DIR nor is it LLMEMB_BUNDLE; put it back there"
        )
    return folder.name, folder


@router.post(
    "/admin/bundles:cancel",
    summary="Stop making another bundle ready",
    responses=problems(404, 503, 504),
)
async def cancel(serving: Annotated[Serving, Depends(serving_of)]) -> UpgradeStatus:
    """Stop soon; what is embedded stays for the next attempt. What is over stays as it is."""
    if serving.upgrade is None:
        raise UnknownBundle("no bundle is being made ready")
    serving.upgrade.cancel()
    return _status(serving.upgrade)
