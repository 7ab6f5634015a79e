"""What the service refuses to do, and the status and body a client sees for it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Self, get_args, get_type_hints
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from models import OutOfMemory
from models.item import InvalidItem

MEDIA_TYPE = "application/problem+json"
# What pydantic's paths call the members of a union, where it is told which of them a value is.
AN_ID, AN_ITEM = "an id", "an item"
MOST_ERRORS = 20  # of one body; more help nobody


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="JSON path in the body", examples=["items[3].attributes.price"])
    message: str
    value: str | None = Field(None, description="what was sent, as JSON, cut to 80 characters")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="stable name of the error", examples=["urn:llmemb:unknown-item"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    request_id: str
    errors: list[FieldError] = []


class OpenAIDetails(BaseModel):
    """What is wrong, in OpenAI's words."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="the field of the body that is wrong", examples=["input"])
    code: str | None = Field(examples=["context_length_exceeded"])


class OpenAIError(BaseModel):
    """The body of every error below /v1/, as OpenAI's clients read it."""

    error: OpenAIDetails


class ServiceError(Exception):
    """Base of every error that the service raises on purpose.

    Attributes:
        retry_after_s: when to come again, for errors that pass.
        errors: fields that are wrong.
        reason: what `llmemb_rejected_total` counts it as, where the class alone does not say.
        code: OpenAI's name for it, where the class alone does not say.
    """

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        errors: Sequence[FieldError] = (),
        reason: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.errors = list(errors)
        self.reason = reason
        self.code = code

    @classmethod
    def field(cls, field: str, message: str, value: object = None, code: str | None = None) -> Self:
        """The error for one field."""
        return cls(
            f"{field}: {message}",
            errors=[FieldError(field=field, message=message, value=shown(value))],
            code=code,
        )


class Malformed(ServiceError):
    """The body is no JSON, or a path or a header says nothing that could be read."""


class Unauthenticated(ServiceError):
    """No API key came, or none that is known."""


class Forbidden(ServiceError):
    """The API key lacks the scope that this needs."""


class UnknownItem(ServiceError):
    """The catalogue has no such item, or none of the history's."""


class UnknownImport(ServiceError):
    """No import with this id has begun, or it was so long ago that it is forgotten."""


class UnknownBundle(ServiceError):
    """LLMEMB_BUNDLES_DIR has no such folder, or there is no bundle to go back to."""


class UnknownModel(ServiceError):
    """No model of GET /v1/models has this id."""


class BundleMismatch(ServiceError):
    """Vectors came that belong to another bundle than the one that is served."""


class UpgradeRunning(ServiceError):
    """Another bundle is being made ready."""


class ImportRunning(ServiceError):
    """An import with this id is under way."""


class PreconditionFailed(ServiceError):
    """If-Match or If-None-Match does not hold; nothing was changed."""


class BodyTooLarge(ServiceError):
    """The body has more bytes than LLMEMB_MAX_BODY_BYTES."""


class NotJSON(ServiceError):
    """The body is of another content type."""


class Invalid(ServiceError):
    """A field of the request has a value that cannot be used."""


class Overloaded(ServiceError):
    """Too much is waiting; the same request may succeed later."""


class NotReady(ServiceError):
    """The service is starting, draining or closed."""


class Superseded(NotReady):
    """Another bundle has become active between the reading of a request and its writing."""


class Unreachable(NotReady):
    """What holds the catalogue, outside this process, does not answer."""


class TooLate(ServiceError):
    """The answer took longer than LLMEMB_REQUEST_TIMEOUT_S or X-Request-Timeout-Ms."""


class StorageFull(ServiceError):
    """The disk of the catalogue has no room; nothing was changed."""


class Unsupported(ServiceError):
    """What holds the catalogue cannot do this; nothing was changed."""


class Unexpected(ServiceError):
    """A defect; its text stays in the log."""


STATUS: dict[type[Exception], HTTPStatus] = {
    Malformed: HTTPStatus.BAD_REQUEST,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    UnknownItem: HTTPStatus.NOT_FOUND,
    UnknownImport: HTTPStatus.NOT_FOUND,
    UnknownModel: HTTPStatus.NOT_FOUND,
    UnknownBundle: HTTPStatus.NOT_FOUND,
    BundleMismatch: HTTPStatus.CONFLICT,
    UpgradeRunning: HTTPStatus.CONFLICT,
    ImportRunning: HTTPStatus.CONFLICT,
    PreconditionFailed: HTTPStatus.PRECONDITION_FAILED,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    NotJSON: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidItem: HTTPStatus.UNPROCESSABLE_ENTITY,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    Unexpected: HTTPStatus.INTERNAL_SERVER_ERROR,
    Unsupported: HTTPStatus.NOT_IMPLEMENTED,
    NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    OutOfMemory: HTTPStatus.SERVICE_UNAVAILABLE,
    TooLate: HTTPStatus.GATEWAY_TIMEOUT,
    StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
}

REASON: dict[int, str] = {
    400: "The body is no JSON, or the path or a header cannot be read.",
    401: "No API key, or none that is known.",
    403: "The API key lacks the scope that this needs.",
    404: "There is no such item, import, model or bundle.",
    409: "Another bundle is active, or the import or a reindex is under way.",
    412: "If-Match or If-None-Match does not hold; nothing was changed.",
    413: "The body is too large.",
    415: "The content type is not one that this route reads.",
    422: "A field has a value that cannot be used; `errors` names it.",
    429: "Too much is in flight or waiting; come again after Retry-After seconds.",
    500: "A defect of the service; its log has the request id.",
    501: "What holds the catalogue (LLMEMB_STORE) cannot do this; `detail` says what can.",
    503: "Starting, draining or out of memory; come again after Retry-After seconds.",
    504: "The answer took too long.",
    507: "The disk of the catalogue is full; nothing was changed.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may fail with these statuses."""
    return {
        status: {"description": REASON[status], "model": Problem}
        for status in sorted({*statuses, 500})
    }


def shown(value: object) -> str | None:
    """A value of a request as JSON that is short enough for an error, in ASCII."""
    if value is None:
        return None
    try:
        text = json.dumps(value, default=repr, ensure_ascii=True)
    except (ValueError, RecursionError):
        text = "…"
    return text if len(text) <= 80 else text[:79] + "…"


OPENAI_FOLDER = "/v1/"
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
OPENAI_CODES: dict[type[Exception], str] = {
    Unauthenticated: "invalid_api_key",
    UnknownModel: "model_not_found",
    Overloaded: "rate_limit_exceeded",
}


def problem_type(kind: type[Exception]) -> str:
    """The stable name of a class of STATUS, as in `type` of its problems."""
    return "urn:llmemb:" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()


def openai_code(kind: type[Exception]) -> str:
    """OpenAI's name for a class of STATUS, where the error itself has none."""
    return OPENAI_CODES.get(kind, problem_type(kind).rpartition(":")[2].replace("-", "_"))


def answer(error: Exception, path: str, request_id: str) -> JSONResponse:
    """The response for an error of STATUS or its subclasses."""
    kind = next(kind for kind in type(error).__mro__ if kind in STATUS)
    status = STATUS[kind]
    retry = getattr(error, "retry_after_s", None)
    detail = str(error)
    if kind is OutOfMemory:
        retry, detail = 1, f"out of memory: {error}; send fewer or shorter items"
    challenge = {"WWW-Authenticate": "Bearer"} if kind is Unauthenticated else {}
    wait = {"Retry-After": str(max(1, math.ceil(retry)))} if retry else {}
    return _response(
        Problem(
            type=problem_type(kind),
            title=status.phrase,
            status=status,
            detail=detail,
            instance=path,
            request_id=request_id,
            errors=getattr(error, "errors", []),
        ),
        {**challenge, **wait},
        getattr(error, "code", None) or openai_code(kind),
    )


def _response(
    problem: Problem, headers: Mapping[str, str] | None, code: str | None = None
) -> JSONResponse:
    """A problem in the shape that clients of its path expect."""
    if not unquote(problem.instance).startswith(OPENAI_FOLDER):
        return JSONResponse(problem.model_dump(), problem.status, headers, media_type=MEDIA_TYPE)
    # OpenAI has no 422.
    status = 400 if problem.status == 422 else problem.status
    told = OpenAIDetails(
        message=problem.detail,
        type=OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        param=problem.errors[0].field if problem.errors else None,
        code=code,
    )
    return JSONResponse(OpenAIError(error=told).model_dump(), status, headers)


def request_path(scope: Mapping[str, Any]) -> str:
    """The path as it was sent, in ASCII."""
    raw: bytes = scope.get("raw_path") or str(scope["path"]).encode("ascii", "backslashreplace")
    return raw.decode("ascii", "backslashreplace")


async def _known(request: Request, error: Exception) -> JSONResponse:
    if not request.scope["path"].startswith("/health/"):  # a probe is told, not refused
        request.app.state.metrics.observe_refusal(error)
    return answer(error, request_path(request.scope), request.state.request_id)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    status = HTTPStatus(error.status_code)
    detail = error.detail if error.detail != status.phrase else status.description
    return _response(
        Problem(
            type="about:blank",
            title=status.phrase,
            status=status,
            detail=detail or status.phrase,
            instance=request_path(request.scope),
            request_id=request.state.request_id,
        ),
        error.headers,
    )


async def _schema(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    hints = get_type_hints(request.scope["endpoint"])
    model = next(filter(None, map(_model, hints.values())), None)
    return await _known(request, invalid(error.errors(), error.body, model))


def answer_errors(app: FastAPI) -> None:
    """Give every error a problem+json body. Unexpected ones are service.edge's."""
    for kind in STATUS:
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _schema)


# Pydantic's errors in the words of all others, by their type; `{}` are of their context.
MESSAGES = {
    "missing": "is missing",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "too_short": "has {actual_length} entries; at least {min_length} must come",
    "too_long": "has more than {max_length} entries, which is the most that may come",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} characters or fewer",
    "string_pattern_mismatch": "must be as the regular expression {pattern} has it",
}
# What a field of several types takes, by the name that leads to it.
UNIONS = {
    "attributes": "must be a string, a number, a boolean, null, or a list of those",
    "vectors": "must be a list of numbers, or base64 of little-endian 32-bit floats",
}


def invalid(
    errors: Sequence[Mapping[str, Any]], body: object, model: type[BaseModel] | None = None
) -> Invalid:
    """Pydantic's errors over a decoded body as one Invalid, one FieldError a field.

    Pydantic reports a value that fits no member of a union once a member, under a path that
    holds the member's name; these become one error under the path that the client knows.

    Args:
        model: what the body should have been, to tell which fields there are.
    """
    found: dict[str, FieldError] = {}
    unions: set[str] = set()
    for error in errors:
        place, *parts = error["loc"]
        path, foreign = _path(parts, body, error["type"]) if place == "body" else (parts, False)
        field = _written(path) or "body"
        message = _message(error, model)
        if foreign and error["type"] != "recursion_loop":
            unions.add(field)
            name = next((each for each in path if each in UNIONS), None)
            if name == "attributes" or (name and not isinstance(path[-1], int)):
                message = UNIONS[name]
        value = None if error["type"] == "missing" else error.get("input")
        found.setdefault(field, FieldError(field=field, message=message, value=shown(value)))
    for field in unions:
        # A list with one bad part fits no member either; the part says it better.
        if any(other != field and other.startswith(field + "[") for other in found):
            del found[field]
    listed = list(found.values())[:MOST_ERRORS]
    detail = f"{listed[0].field}: {listed[0].message}"
    if len(found) > 1:
        detail += f" (and {len(found) - 1} more)"
    return Invalid(detail, errors=listed)


def _message(error: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    kind = error["type"]
    if kind == "recursion_loop":
        return "is nested too deeply"
    if kind == "extra_forbidden":
        known = _fields(model, error["loc"][1:-1])
        return "is no field here" + (f"; there are {', '.join(known)}" if known else "")
    if kind in MESSAGES:
        return MESSAGES[kind].format(**error.get("ctx", {}))
    message: str = error["msg"]
    return message.removeprefix("Value error, ")


def _fields(model: type[BaseModel] | None, steps: Sequence[Any]) -> list[str]:
    """Names of the fields where some steps from a model lead."""
    for step in steps:  # those that are no field go into a list or a union
        if model and step in model.model_fields:
            model = _model(model.model_fields[step].annotation)
    return list(model.model_fields) if model else []


def _model(annotation: object) -> type[BaseModel] | None:
    """The first model in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, get_args(annotation))), None)


def _path(parts: Sequence[Any], body: object, kind: str) -> tuple[list[Any], bool]:
    """The steps that lead somewhere in the body, and whether others were left out."""
    path: list[Any] = []
    node = body
    foreign = False
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]
        elif part in (AN_ID, AN_ITEM):
            continue
        elif not (last and kind == "missing"):
            foreign = True
            continue
        path.append(part)
    return path, foreign


def _written(path: Sequence[Any]) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"\w{1,64}", part, re.ASCII):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text if len(text) <= 200 else text[:199] + "…"
