"""The FastAPI application."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from service import version
from service.auth import is_open, read_keys
from service.edge import Edge
from service.errors import MEDIA_TYPE, OPENAI_FOLDER, REASON, OpenAIError, answer_errors
from service.gate import DEADLINE, Gate
from service.importing import ImportLine
from service.metrics import Metrics
from service.routes import (
    admin,
    docs,
    embed,
    health,
    items,
    items_batch,
    items_import,
    items_list,
    items_lookup,
    items_map,
    neighbours,
    openai,
    recommend,
    web,
)
from service.serving import Serving
from service.settings import Settings
from service.tracing import Tracing

DESCRIPTION = """Embeddings for sequential recommenders, from item attributes.

`POST /embed` turns attributes into vectors. `PUT /items/{id}` adds an item to the catalogue,
`POST /items:batch` some and `POST /items:import` a file of them;
`POST /recommend` ranks the catalogue for a user's history, `POST /search` for a vector.
Errors are `application/problem+json` (RFC 9457). `/v1/` speaks as OpenAI's embeddings do.
"""

KEYS = "An API key, where the service has any; `read` and `write` are scopes of it."
REFUSED_AT_THE_GATE = (400, 401, 403, 429, 504)  # whatever the route


def create_app(settings: Settings, tracing: Tracing | None = None) -> FastAPI:
    """The app; once it runs it loads in the background, and says 503 until that is done.

    Args:
        tracing: where spans go; closed with the app.

    Raises:
        BadSettings: the file of API keys cannot be used.
    """
    keys = read_keys(settings.api_keys_file) if settings.api_keys_file else None
    metrics = Metrics()
    serving = Serving(settings, metrics)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        # A daemon: a process that is stopped while it loads need not wait for the end of it.
        threading.Thread(target=serving.load, name="load", daemon=True).start()
        yield
        await serving.close()
        if tracing:
            tracing.close()

    app: FastAPI = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        title="LLMEmb",
        version=version(),
        description=DESCRIPTION,
        lifespan=life,
        redirect_slashes=False,
        # FastAPI's own would send messages of exceptions, which may quote a request, and knows
        # nothing of what service.gate refuses.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.serving = serving
    app.state.metrics = metrics
    paths: list[str] = []
    # Neighbours before items, whose ids may hold slashes.
    for module in (
        embed,
        recommend,
        neighbours,
        items,
        items_batch,
        items_import,
        items_list,
        items_lookup,
        items_map,
        openai,
        health,
        admin,
    ):
        app.include_router(module.router)
        for route in module.router.routes:
            assert isinstance(route, APIRoute)  # noqa: S101
            path = route.path.replace(":path}", "}")
            paths.append(path)
            for method in route.methods or ():
                metrics.expect_route(method, path, route.status_code or 200)
    app.include_router(docs.router)
    app.include_router(web.router)
    answer_errors(app)
    app.state.admission = serving.admission
    metrics.inflight.set_function(lambda: app.state.admission.requests)
    metrics.inflight_limit.set(settings.max_requests)
    # The last one is the outermost. A browser asks without a key whether it may ask, so that
    # question is answered before the gate; what it then asks comes to the gate as all else does.
    app.add_middleware(
        Gate,
        keys=keys,
        admission=app.state.admission,
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.request_timeout_s,
        metrics=metrics,
    )
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                *("Authorization", "X-Request-ID", DEADLINE, "traceparent"),
                *("If-Match", "If-None-Match"),
            ],
            expose_headers=["X-Request-ID", "Retry-After", "ETag"],
        )
    app.add_middleware(Edge, metrics=metrics, routes=paths, tracing=tracing)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, with the media type that problems really have."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schema["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": KEYS}
        }
        shapes = OpenAIError.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= {**shapes.pop("$defs"), "OpenAIError": shapes}
        lines = ImportLine.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= {**lines.pop("$defs"), "ImportLine": lines}
        for name, path in schema["paths"].items():
            for operation in path.values():
                if not is_open(name):
                    operation["security"] = [{"key": []}, {}]
                    for status in REFUSED_AT_THE_GATE:
                        operation["responses"].setdefault(
                            str(status), {"description": REASON[status]}
                        )
                media_type, shape = MEDIA_TYPE, "Problem"
                if name.startswith(OPENAI_FOLDER):
                    media_type, shape = "application/json", "OpenAIError"
                    operation["responses"].pop("422", None)  # which is a 400 there
                for status, response in operation["responses"].items():
                    if int(status) >= 400:
                        response["content"] = {
                            media_type: {"schema": {"$ref": f"#/components/schemas/{shape}"}}
                        }
        # `{item_id:path}` is Starlette's way to say that an id may hold slashes.
        schema["paths"] = {
            path.replace(":path}", "}"): operations for path, operations in schema["paths"].items()
        }
        app.openapi_schema = schema
    return app.openapi_schema
