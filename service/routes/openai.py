"""Texts to vectors for clients of OpenAI's embeddings API."""

from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from models.prompt import Prompt
from service.errors import Invalid, UnknownModel, problems
from service.incoming import LLM
from service.index import Floats
from service.requests import JSONRoute
from service.routes.embed import written
from service.serving import Parts, Serving, parts_of, serving_of
from service.settings import MAX_ITEMS

router = APIRouter(prefix="/v1", route_class=JSONRoute, tags=["openai"])

NAME = "input"  # what a text stands under where an item's attributes stand
# A byte makes a token at most, and some tokenizers begin with a blank of their own. So a text
# that is this much shorter than the limit need not be counted before it is read.
SPARE_TOKENS = 8


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ValueError("must be a string or a list of strings")
    if not texts:
        raise ValueError("is empty; send one text or more")
    if len(texts) > MAX_ITEMS:
        raise ValueError(f"has {len(texts)} texts; at most {MAX_ITEMS} may come")
    for position, text in enumerate(texts):
        if isinstance(text, int | list):
            raise ValueError(
                f"holds token ids at position {position}; send text, for this LLM has tokens of "
                "its own"
            )
        if not isinstance(text, str):
            raise ValueError(f"holds something else than a string at position {position}")
        if not text.strip():
            raise ValueError(f"holds an empty text at position {position}")
    return texts


class EmbeddingsRequest(BaseModel):
    """Texts to embed, as OpenAI's clients ask."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"model": "ml-100k", "input": ["title is Toy Story; genres is Comedy"]}]
        },
    )

    model: str = Field(description="An id of GET /v1/models.")
    input: Annotated[
        list[str],
        BeforeValidator(_texts),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {"type": "string"},
                        "minItems": 1,
                        "maxItems": MAX_ITEMS,
                    },
                ]
            }
        ),
    ] = Field(
        description="A text or a list of them, at most `max_items` of GET /info. A text stands "
        "where an item's attributes stand: `title is Toy Story; genres is Comedy` has the vectors "
        "of that item. One that is longer than `max_tokens` is refused, not cut."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64` is of the little-endian 32-bit floats."
    )
    dimensions: int | None = Field(None, description="The model's own width, if anything.")
    user: str | None = Field(None, description="Ignored.")


class Embedding(BaseModel):
    """One text's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What was read."""

    prompt_tokens: int = Field(description="Of the texts; not of the instruction before them.")
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """Vectors in the order of the request."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """One way to make a text a vector."""

    id: str = Field(examples=["ml-100k/text"])
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known.")
    owned_by: str = "llmemb"
    dimensions: int = Field(description="Numbers in its vectors.", examples=[128])


class Models(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


def _models(parts: Parts) -> dict[str, str]:
    """Model id -> view, or LLM."""
    name = parts.bundle.manifest.name
    views = parts.bundle.open_views
    default = {name: views[0]} if views else {}
    return {**default, **{f"{name}/{view}": view for view in views}, f"{name}/{LLM}": LLM}


def _known(parts: Parts, model_id: str) -> Model:
    models = _models(parts)
    if model_id not in models:
        shown = model_id if len(model_id) <= 80 else model_id[:79] + "…"
        raise UnknownModel(f"there is no model {shown!a}; there are {', '.join(models)}")
    view = models[model_id]
    width = parts.bundle.manifest.llm_dim if view == LLM else parts.bundle.views[view].width
    return Model(id=model_id, dimensions=width)


async def _refuse_long(parts: Parts, prompts: list[Prompt]) -> None:
    """Refuse texts that would be cut, before they are read.

    Were they read, the cache would tell the item that reads so that it lost the attribute
    `input`.
    """
    limit = parts.bundle.manifest.max_tokens
    doubtful = [
        (position, prompt)
        for position, prompt in enumerate(prompts)
        if len(prompt.body.encode()) + SPARE_TOKENS > limit
    ]
    cuts = await parts.batcher.cuts([prompt for _, prompt in doubtful]) if doubtful else []
    for (position, _), cut in zip(doubtful, cuts, strict=True):
        if cut:
            raise Invalid.field(
                NAME,
                f"the text at position {position} is longer than the {limit} tokens that are read",
                code="context_length_exceeded",
            )


@router.post(
    "/embeddings",
    summary="Embed texts, as OpenAI does",
    responses=problems(400, 404, 413, 415, 422, 429, 503, 504),
)
async def embeddings(
    query: EmbeddingsRequest,
    parts: Annotated[Parts, Depends(parts_of)],
    serving: Annotated[Serving, Depends(serving_of)],
) -> EmbeddingsResponse:
    """The vectors of texts, in one view or as the LLM gives them.

    For clients of OpenAI's API: point `base_url` at `/v1` of this service.
    """
    model = _known(parts, query.model)
    if len(query.input) > serving.settings.max_items:
        raise Invalid.field(
            NAME,
            f"has {len(query.input)} texts; at most {serving.settings.max_items} may come",
        )
    if query.dimensions not in (None, model.dimensions):
        raise Invalid.field(
            "dimensions",
            f"is {query.dimensions}; vectors of {model.id} have {model.dimensions} numbers, "
            "and cannot be shortened",
        )
    instruction = parts.bundle.manifest.template.instruction
    prompts = [Prompt(instruction, text, ((NAME, len(text)),)) for text in query.input]
    await _refuse_long(parts, prompts)
    read = await parts.embedder.read(prompts, where="input[{}]")
    vectors: Floats = np.stack([value.vector for value, _ in read])
    view = _models(parts)[model.id]
    if view != LLM:
        nobody = [""] * len(read)  # a text has no id, and no item has an empty one
        vectors = np.stack([seen[view] for seen in await parts.embedder.views(nobody, vectors)])
    tokens = sum(value.tokens for value, _ in read)
    return EmbeddingsResponse(
        data=[
            Embedding(index=position, embedding=written(vector, query.encoding_format))
            for position, vector in enumerate(vectors)
        ],
        model=model.id,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


@router.get("/models", summary="List the models, as OpenAI does", responses=problems(503))
async def models(parts: Annotated[Parts, Depends(parts_of)]) -> Models:
    """The bundle's default, each view that a text has, and the LLM itself."""
    return Models(data=[_known(parts, model_id) for model_id in _models(parts)])


@router.get(
    "/models/{model_id:path}",
    summary="Look a model up, as OpenAI does",
    responses=problems(404, 422, 503),
)
async def model(model_id: str, parts: Annotated[Parts, Depends(parts_of)]) -> Model:
    """One model of GET /v1/models."""
    return _known(parts, model_id)
