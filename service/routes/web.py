"""The page that people try the service on: files of service/web, read once."""

import hashlib
import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "web"
INDEX = "index.html"
# Stricter than what service.edge gives to pages: no inline style, and no text that becomes markup.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-content-type-options": "nosniff",
}
# Asked for again at every visit and answered with 304: an upgrade is seen at once.
CACHING = "no-cache"

mimetypes.add_type("text/javascript", ".js")  # whatever this machine's tables say


def _files() -> dict[str, tuple[bytes, str, str]]:
    """Of each file its content, media type and ETag."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        files[path.name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return files


FILES = _files()


def _answer(name: str, request: Request) -> Response:
    if name not in FILES:
        raise HTTPException(404)
    content, kind, etag = FILES[name]
    headers = {**HEADERS, "etag": etag, "cache-control": CACHING}
    if _holds(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


def _holds(told: list[str], etag: str) -> bool:
    """Whether If-None-Match names a tag: *, or a list, in which a proxy may have weakened it."""
    tags = {each.strip().removeprefix("W/") for each in ",".join(told).split(",")}
    return bool(tags & {"*", etag})


@router.head("/")
@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _answer(INDEX, request)


@router.get("/web/{name}")
async def file(name: str, request: Request) -> Response:
    """What the page loads."""
    return _answer(name, request)
