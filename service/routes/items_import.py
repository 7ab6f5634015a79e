"""A file of items, as long as it may be, and how far it has come."""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from service.errors import ImportRunning, Overloaded, TooLate, UnknownImport, problems
from service.importing import Importing, Into
from service.incoming import Readying, require_active
from service.pace import yielding
from service.progress import Progress
from service.requests import require_type
from service.serving import DRAINING, Parts, Serving, on_disk, parts_of, serving_of

router = APIRouter(tags=["items"])

TYPES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "text/plain")
AT_ONCE = 4  # imports; each may keep a chunk and a line in memory
QUIET_S = 1.0  # after which lines that came are committed, though the chunk is not full
ID = r"^[A-Za-z0-9._~-]{1,128}$"
ID_DESCRIPTION = "Chosen by the client: 1 to 128 letters, digits, dots, dashes, `_` and `~`."
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One JSON object a line; blank lines are passed over.",
        "content": {TYPES[0]: {"schema": {"$ref": "#/components/schemas/ImportLine"}}},
    }
}


class ImportQuery(BaseModel):
    """Which import this is."""

    model_config = ConfigDict(extra="forbid")

    import_id: str = Field(pattern=ID, description=ID_DESCRIPTION, examples=["spring-2026"])
    bundle: str | None = Field(
        None, max_length=200, description="`bundle` of GET /info, to which vectors belong."
    )


class ImportStatus(BaseModel):
    """How far an import has come."""

    import_id: str
    state: Literal["running", "finished", "broken", "stopped"] = Field(
        description="`broken`: the line after `durable_line` is wrong. `stopped`: it ended before "
        "the file did. After both, send all again with the same import_id to go on."
    )
    durable_line: int = Field(
        description="The last line that is stored, with all before it; blank ones count."
    )
    created: int
    changed: int
    unchanged: int
    error: str | None = Field(None, description="What is wrong with the line after.")


def _status(import_id: str, progress: Progress, running: bool) -> ImportStatus:
    state: Literal["running", "finished", "broken", "stopped"] = "stopped"
    if running:
        state = "running"
    elif progress.finished:
        state = "finished"
    elif progress.error is not None:
        state = "broken"
    return ImportStatus(
        import_id=import_id,
        state=state,
        durable_line=progress.line,
        created=progress.created,
        changed=progress.changed,
        unchanged=progress.unchanged,
        error=progress.error,
    )


@router.post(
    "/items:import",
    summary="Add or change the items of a file",
    responses=problems(400, 409, 415, 422, 429, 503, 504, 507),
    openapi_extra=BODY,
)
async def import_items(
    query: Annotated[ImportQuery, Query()],
    request: Request,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> ImportStatus:
    """Have the items of a JSONL file in the catalogue; the lines are stored in their order.

    A line has `item_id` and `attributes`, and may have `hidden` and `vectors`. Lines are committed
    in chunks, each of them whole; a client is read from as fast as they are stored. The first line
    that is wrong ends it: all before it are stored, and the answer tells its number and why. The
    same `import_id` again passes over the lines that are stored. The file may be of any length and
    take any time; a line has at most LLMEMB_MAX_BODY_BYTES, and a client that sends nothing for
    LLMEMB_REQUEST_TIMEOUT_S is left.
    """
    require_type(request.headers.get("content-type"), TYPES)
    require_active(query.bundle, parts.bundle.bundle_hash)
    import_id, running = query.import_id, serving.imports
    if import_id in running:
        raise ImportRunning(f"the import {import_id} is under way", retry_after_s=2)
    if len(running) >= AT_ONCE:
        raise Overloaded(f"{len(running)} imports are under way", retry_after_s=10)
    running.add(import_id)
    try:
        progress = await on_disk(parts, lambda: parts.store.imports.begin(import_id))
        importing = Importing(
            import_id,
            progress,
            lambda: _into(serving.parts),
            query.bundle,
            serving.settings.max_body_bytes,
            lambda work: on_disk(parts, work),
            lambda: serving.phase == DRAINING,
            serving.import_turn,
        )
        with yielding():
            await _feed(importing, request, serving.settings.request_timeout_s)
    finally:
        running.discard(import_id)
    known = await on_disk(parts, lambda: parts.store.imports.progress(import_id))
    return _status(import_id, known or progress, running=False)


def _into(parts: Parts) -> Into:
    return Into(parts.store, Readying(parts.bundle, parts.embedder), parts.bundle.bundle_hash)


async def _feed(importing: Importing, request: Request, patience_s: float) -> None:
    pieces = request.stream()
    try:
        while True:
            coming = asyncio.ensure_future(anext(pieces, None))
            since = time.monotonic()
            try:
                while not (await asyncio.wait([coming], timeout=min(QUIET_S, patience_s)))[0]:
                    busy = time.monotonic()
                    await importing.feed(b"")
                    await importing.flush()
                    since += time.monotonic() - busy  # that was not the client's silence
                    if not coming.done() and time.monotonic() - since >= patience_s:
                        raise TooLate(
                            f"nothing came for {patience_s:g} s; lines that came whole are stored, "
                            "send all again with the same import_id to go on"
                        )
            finally:
                if not coming.done():
                    coming.cancel()
                    with suppress(asyncio.CancelledError):
                        await coming
            piece = coming.result()
            if piece is None:
                break
            await importing.feed(piece)
    finally:
        await pieces.aclose()
    await importing.end()


@router.get(
    "/imports/{import_id}",
    summary="How far has an import come?",
    responses=problems(400, 404, 422, 503, 504),
)
async def get_import(
    import_id: Annotated[str, Path(pattern=ID, description=ID_DESCRIPTION)],
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> ImportStatus:
    """The last durable line of an import, while it runs and after; the latest 1000 are known."""
    progress = await on_disk(parts, lambda: parts.store.imports.progress(import_id))
    if progress is None:
        raise UnknownImport(f"no import {import_id!a} is known")
    return _status(import_id, progress, import_id in serving.imports)
