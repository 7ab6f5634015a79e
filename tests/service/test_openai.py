"""OpenAI's own client in front of the service."""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest

from models.bundle import Bundle
from models.item import Item
from tests.service.conftest import Serve
from tests.service.half_sent import HalfSent, wait_until_in_flight
from tests.service.running import Client
from tests.service.test_embed import LONG, stalled
from tests.tiny import TEMPLATE, films

FILMS = films(12)
TEXTS = [TEMPLATE.render(film).body for film in FILMS]
TEXT = TEXTS[0]
LIMIT = 128  # the tiny bundle's max_tokens; its tokens are bytes

OpenAI = Callable[..., openai.OpenAI]


@contextmanager
def client_of(service: Client, api_key: str = "none") -> Iterator[openai.OpenAI]:
    with (
        openai.DefaultHttpxClient(trust_env=False) as http_client,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{service.port}/v1",
            api_key=api_key,
            max_retries=0,
            http_client=http_client,
        ) as client,
    ):
        yield client


@pytest.fixture
def ask() -> Iterator[OpenAI]:
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(client_of(*given))


@pytest.fixture
def client(ask: OpenAI, shared: Client) -> openai.OpenAI:
    return ask(shared)


def test_a_text_has_the_vector_of_the_item_that_reads_so(
    client: openai.OpenAI, shared: Client
) -> None:
    answer = client.embeddings.create(model="tiny", input=TEXTS)

    embedded = shared.embed(*(film.model_dump() for film in FILMS))["results"]
    assert [each.index for each in answer.data] == list(range(12))
    for text, item in zip(answer.data, embedded, strict=True):
        np.testing.assert_array_equal(
            np.array(text.embedding, np.float32), np.array(item["vectors"]["text"], np.float32)
        )
    assert answer.model == "tiny"
    assert answer.usage.prompt_tokens == sum(item["tokens"] for item in embedded)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_base64_and_float_are_the_same_numbers(client: openai.OpenAI, shared: Client) -> None:
    default = client.embeddings.create(model="tiny", input=TEXT).data[0].embedding
    floats = client.embeddings.create(model="tiny", input=TEXT, encoding_format="float")
    body = {"model": "tiny", "input": TEXT, "encoding_format": "base64"}
    raw = shared.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    plain = shared.post("/v1/embeddings", json={"model": "tiny", "input": TEXT}).json()["data"][0]

    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(raw), "<f4"), default)
    np.testing.assert_array_equal(np.float32(floats.data[0].embedding), np.float32(default))
    assert plain["embedding"] == floats.data[0].embedding


def test_a_model_is_the_bundle_one_of_its_views_or_its_llm(
    client: openai.OpenAI, bundle: Bundle
) -> None:
    default, text, llm = (
        np.array(client.embeddings.create(model=model, input=TEXT).data[0].embedding)
        for model in ("tiny", "tiny/text", "tiny/llm")
    )

    np.testing.assert_array_equal(default, text)
    row = bundle.catalogue.rows[FILMS[0].item_id] - 1
    np.testing.assert_allclose(llm, bundle.llm_vectors[row], atol=1e-5)


def test_models_can_be_listed_and_looked_up(client: openai.OpenAI) -> None:
    listed = {model.id: model.model_dump() for model in client.models.list()}

    assert list(listed) == ["tiny", "tiny/text", "tiny/llm"]
    assert [model["dimensions"] for model in listed.values()] == [8, 8, 16]
    for model_id, model in listed.items():
        assert client.models.retrieve(model_id).model_dump() == model
        assert (model["object"], model["owned_by"]) == ("model", "llmemb")


def test_the_width_may_be_named_and_a_user_is_ignored(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="tiny", input=[TEXT], dimensions=8, user="somebody")

    assert len(answer.data[0].embedding) == 8


@pytest.mark.parametrize("model", ["nope", "tiny/id", "tiny/", "tiny/text/", ""])
def test_a_model_that_is_not_known_is_a_404_that_lists_those_that_are(
    client: openai.OpenAI, model: str
) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model=model, input=TEXT)

    assert error.value.code == "model_not_found"
    assert "tiny, tiny/text, tiny/llm" in error.value.message


def test_a_model_that_is_not_known_cannot_be_looked_up(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'a/b'") as error:
        client.models.retrieve("a/b")

    assert error.value.code == "model_not_found"


REFUSED = {
    "token ids": ([1, 2, 3], "input", "token ids at position 0; send text"),
    "lists of token ids": ([[1, 2], [3]], "input", "token ids at position 0; send text"),
    "no texts": ([], "input", "is empty"),
    "an empty text": ("", "input", "an empty text at position 0"),
    "a blank text": (["a", " \n"], "input", "an empty text at position 1"),
    "something else": (["a", None], "input", "something else than a string at position 1"),
    "an object": ({"a": 1}, "input", "must be a string or a list of strings"),
    "too many": (["a"] * 65, "input", "has 65 texts; at most 64 may come"),
    "far too many": (["a"] * 1025, "input", "has 1025 texts"),
}


@pytest.mark.parametrize(("texts", "param", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_text_is_a_400_that_says_why(
    client: openai.OpenAI, texts: str, param: str, reason: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model="tiny", input=texts)

    assert reason in error.value.message
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_other_dimensions_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="have 8 numbers") as error:
        client.embeddings.create(model="tiny", input=TEXT, dimensions=4)

    assert error.value.param == "dimensions"


def test_a_field_or_format_that_is_not_known_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as unknown:
        client.embeddings.create(model="tiny", input=TEXT, extra_body={"truncate": True})
    with pytest.raises(openai.BadRequestError) as format_:
        client.embeddings.create(model="tiny", input=TEXT, encoding_format="int8")  # type: ignore[call-overload]

    assert unknown.value.param == "truncate"
    assert format_.value.param == "encoding_format"


def test_a_text_longer_than_the_limit_is_refused_and_not_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model="tiny", input=["short", "x" * (LIMIT + 1)])

    assert error.value.code == "context_length_exceeded"
    assert error.value.param == "input"
    assert f"at position 1 is longer than the {LIMIT} tokens" in error.value.message
    longest = client.embeddings.create(model="tiny", input="x" * LIMIT)
    assert longest.usage.prompt_tokens == LIMIT


def test_a_refused_text_leaves_no_trace_in_what_an_item_is_told(serve: Serve, ask: OpenAI) -> None:
    service = serve()
    body = TEMPLATE.render(Item.model_validate(LONG)).body

    with pytest.raises(openai.BadRequestError):
        ask(service).embeddings.create(model="tiny", input=body)
    (item,) = service.embed(LONG)["results"]

    assert (item["cached"], item["truncated"]) == (False, ["plot", "zone"])


def test_keys_are_asked_for_in_openais_way(serve: Serve, ask: OpenAI, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("shop read reading-key\nloader write writing-key\n")
    keys.chmod(0o600)
    service = serve(api_keys_file=keys)

    assert ask(service, "reading-key").embeddings.create(model="tiny", input=TEXT).data
    with pytest.raises(openai.AuthenticationError) as unknown:
        ask(service, "another-key").models.list()
    with pytest.raises(openai.PermissionDeniedError, match="scope read"):
        ask(service, "writing-key").embeddings.create(model="tiny", input=TEXT)

    assert unknown.value.code == "invalid_api_key"
    assert unknown.value.response.headers["www-authenticate"] == "Bearer"


def test_too_much_in_flight_is_a_rate_limit(serve: Serve, ask: OpenAI) -> None:
    service = serve(max_requests=1)

    with HalfSent(service.port), pytest.raises(openai.RateLimitError) as error:
        wait_until_in_flight(service, requests=1)
        ask(service).embeddings.create(model="tiny", input=TEXT)

    assert error.value.code == "rate_limit_exceeded"
    assert error.value.type == "rate_limit_error"
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_a_service_that_drains_or_fails_is_a_server_error(serve: Serve, ask: OpenAI) -> None:
    service = serve()
    client = ask(service)
    service.app.state.admission.close()

    with pytest.raises(openai.InternalServerError) as error:
        client.models.list()

    assert (error.value.status_code, error.value.type) == (503, "server_error")
    assert error.value.code == "not_ready"
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_a_defect_is_a_500_without_its_text(
    serve: Serve, ask: OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    service = serve(cache_items=0)
    service.parts.batcher._encode = lambda *_: 1 / 0  # type: ignore[assignment]

    with pytest.raises(openai.InternalServerError) as error:
        ask(service).embeddings.create(model="tiny", input=TEXT)

    assert (error.value.status_code, error.value.code) == (500, "unexpected")
    assert "division" not in error.value.message


def test_a_deadline_is_a_504(ask: OpenAI, serve: Serve) -> None:
    service = serve(cache_items=0)

    with stalled(service), pytest.raises(openai.InternalServerError) as error:
        ask(service).embeddings.create(
            model="tiny", input=TEXT, extra_headers={"X-Request-Timeout-Ms": "50"}
        )

    assert (error.value.status_code, error.value.code) == (504, "too_late")


@pytest.mark.parametrize(
    ("method", "path", "content", "content_type", "status"),
    [
        ("GET", "/v1/nope", b"", "application/json", 404),
        ("GET", "/v1/embeddings", b"", "application/json", 405),
        ("POST", "/v1/embeddings", b"{}", "text/plain", 415),
        ("POST", "/v1/embeddings", b"{}", "application/json", 400),
        ("POST", "/v1/embeddings", b"{", "application/json", 400),
        ("POST", "/v1/embeddings", b"[]", "application/json", 400),
        ("POST", "/v1/embeddings", b" " * 3_000_000, "application/json", 413),
        ("POST", "/%76%31/embeddings", b"{", "application/json", 400),
    ],
)
def test_every_error_below_v1_has_openais_shape(
    shared: Client, method: str, path: str, content: bytes, content_type: str, status: int
) -> None:
    answer = shared.request(method, path, content=content, headers={"content-type": content_type})

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.text)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert answer.headers["x-request-id"]
