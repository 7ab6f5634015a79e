"""Every bad request gets its status, and names what is wrong."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.conftest import Serve
from tests.service.running import Client, wait_for_record

ITEM = {"item_id": "x", "attributes": {"title": "X"}}


def embed_body(**attributes: object) -> dict[str, Any]:
    return {"items": [ITEM, {"item_id": "y", "attributes": attributes}]}


SEARCH_FIELDS = "is no field here; there are view, vector, k, exclude, filter, bundle"
SCHEMA: list[tuple[str, dict[str, Any], str]] = [
    ("/embed", {"items": []}, "items"),
    ("/embed", {}, "items"),
    ("/embed", {"items": [ITEM], "extra": 1}, "extra"),
    ("/embed", {"items": [{**ITEM, "title": "X"}]}, "items[0].title"),
    ("/embed", {"items": [{"item_id": "x"}]}, "items[0].attributes"),
    ("/embed", {"items": [{**ITEM, "item_id": 7}]}, "items[0].item_id"),
    ("/embed", {"items": [{**ITEM, "item_id": ""}]}, "items[0].item_id"),
    ("/embed", {"items": [{**ITEM, "item_id": "é" * 300}]}, "items[0].item_id"),
    ("/embed", {"items": [{**ITEM, "item_id": "a\nb"}]}, "items[0].item_id"),
    ("/embed", {"items": [ITEM, ITEM]}, "items[1].item_id"),
    ("/embed", {"items": [ITEM], "view": "nope"}, "view"),
    ("/embed", {"items": [ITEM], "view": "id"}, "view"),  # a table: new items have none
    ("/embed", {"items": [ITEM], "index": 1}, "index"),
    ("/embed", {"items": [{**ITEM, "item_id": str(n)} for n in range(65)]}, "items"),
    ("/embed", embed_body(price={"amount": 3}), "items[1].attributes.price"),
    ("/embed", embed_body(genres=["a", {"b": 1}]), "items[1].attributes.genres[1]"),
    ("/embed", embed_body(title=" "), "items[1].attributes"),
    ("/embed", {"items": [{"item_id": "y", "attributes": {}}]}, "items[0].attributes"),
    ("/embed", embed_body(a=[[[[[["deep"]]]]]]), "items[1].attributes"),
    ("/embed", embed_body(**{f"a{n}": 1 for n in range(65)}), "items[1].attributes"),
    ("/recommend", {"history": "1"}, "history"),
    ("/recommend", {"history": ["1", ""]}, "history[1]"),
    ("/recommend", {"history": ["1", {}]}, "history[1]"),
    ("/recommend", {"history": [{"title": "Ran"}]}, "history[0].title"),
    ("/recommend", {"history": [{"attributes": {}}]}, "history[0].attributes"),
    ("/recommend", {"history": ["1", {"attributes": {"title": " "}}]}, "history[1].attributes"),
    ("/recommend", {"history": [{"attributes": {"a": {"b": 1}}}]}, "history[0].attributes.a"),
    ("/recommend", {"history": [{"attributes": {"a": "b"}, "vectors": {}}]}, "history[0]"),
    ("/recommend", {"history": [{"attributes": {"a": "b"}}] * 65}, "history"),
    ("/recommend", {"history": [{"vectors": {"text": [1.0] * 8}}]}, "bundle"),
    ("/recommend", {"history": ["1"], "strategy": "worst"}, "strategy"),
    ("/recommend", {"history": ["1"], "explore": 1.1}, "explore"),
    ("/recommend", {"history": ["1"], "diversity": -0.1}, "diversity"),
    ("/recommend", {"history": ["1"], "seed": -1}, "seed"),
    ("/recommend", {"history": ["1"], "seed": 2**32}, "seed"),
    ("/recommend", {"history": ["1", 2]}, "history[1]"),
    ("/recommend", {"history": ["1"] * 1001}, "history"),
    ("/recommend", {"history": ["1"], "k": 0}, "k"),
    ("/recommend", {"history": ["1"], "k": 501}, "k"),
    ("/recommend", {"history": ["1"], "k": "5"}, "k"),
    ("/recommend", {"history": ["1"], "k": 1.5}, "k"),
    ("/recommend", {"history": ["1"], "exclude": ["1"] * 10_001}, "exclude"),
    ("/search", {"view": "text", "vector": [1.0] * 7}, "vector"),
    ("/search", {"view": "nope", "vector": [1.0]}, "view"),
    ("/search", {"view": "text", "vector": []}, "vector"),
    ("/search", {"view": "text", "vector": [1.0] * 7 + ["x"]}, "vector[7]"),
    ("/search", {"view": "text", "vector": [1e300] * 8}, "vector"),
]


@pytest.mark.parametrize(("path", "body", "field"), SCHEMA)
def test_a_wrong_field_is_a_422_that_names_it(
    shared: Client, path: str, body: dict[str, Any], field: str
) -> None:
    answer = shared.post(path, json=body)

    problem = answer.json()
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["title"] == "Unprocessable Entity"
    assert problem["status"] == 422
    assert problem["instance"] == path
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]


SENTENCES: list[tuple[str, dict[str, Any], str, str]] = [
    ("/search", {"view": "text", "vector": [1.0], "top": 1}, "top", SEARCH_FIELDS),
    ("/recommend", {"history": [{"title": "X"}]}, "history[0].title", "are attributes, vectors"),
    ("/embed", {"items": [{**ITEM, "x": 1}]}, "items[0].x", "there are item_id, attributes"),
    ("/items:batch", {"items": [{**ITEM, "x": 1}]}, "items[0].x", "there are item_id, attrib"),
    ("/embed", {}, "items", "is missing"),
    ("/embed", {"items": []}, "items", "has 0 entries; at least 1 must come"),
    ("/recommend", {"history": [{"attributes": {}}]}, "history[0].attributes", "at least 1 must"),
    ("/recommend", {"history": ["1"] * 1001}, "history", "has more than 1000 entries"),
    ("/recommend", {"history": [""]}, "history[0]", "must have 1 or more characters"),
    ("/recommend", {"history": "1"}, "history", "must be a list"),
    ("/recommend", {"history": [], "k": 0}, "k", "must be 1 or more"),
    ("/recommend", {"history": [], "k": 501}, "k", "must be 500 or less"),
    ("/recommend", {"history": [], "k": 1.5}, "k", "must be a whole number"),
    ("/recommend", {"history": [], "explore": "x"}, "explore", "must be a number"),
    ("/recommend", {"history": [], "exclude_history": 1}, "exclude_history", "true or false"),
    ("/recommend", {"history": [], "explain": "x"}, "explain", "must be 'none', 'history' or"),
    ("/admin/bundles", {"bundle": "../x"}, "bundle", "must be as the regular expression ^[A-Z"),
]


@pytest.mark.parametrize(("path", "body", "field", "message"), SENTENCES)
def test_what_is_wrong_is_said_in_one_sentence_and_not_pydantics(
    shared: Client, path: str, body: dict[str, Any], field: str, message: str
) -> None:
    problem = shared.post(path, json=body).json()

    errors = problem["results"][0]["errors"] if "results" in problem else problem["errors"]
    assert errors[0]["field"] == field
    assert message in errors[0]["message"]


def test_a_wrong_parameter_is_told_which_there_are(shared: Client) -> None:
    answer = shared.get("/map", params={"limt": 3})

    assert answer.status_code == 422
    assert answer.json()["detail"] == "limt: is no field here; there are attribute, limit"


def test_a_request_for_another_bundle_is_a_409_that_names_the_field(shared: Client) -> None:
    for path, body in {
        "/recommend": {"history": ["1"]},
        "/search": {"view": "text", "vector": [1.0] * 8},
        "/items:batch": {"items": [ITEM]},
    }.items():
        answer = shared.post(path, json={**body, "bundle": "another"})

        assert answer.status_code == 409
        (error,) = answer.json()["errors"]
        assert (error["field"], error["value"]) == ("bundle", '"another"')
        assert "the request is meant for bundle 'another'" in error["message"]


def test_a_wrong_value_is_shown_but_short(shared: Client) -> None:
    answer = shared.post("/recommend", json={"history": "x" * 5000})

    (error,) = answer.json()["errors"]
    assert error["value"].startswith('"xxx')
    assert len(error["value"]) == 80


def test_a_wrong_width_names_view_got_and_expected(shared: Client) -> None:
    answer = shared.post("/search", json={"view": "text", "vector": [1.0] * 7})

    assert "view 'text' has vectors of 8 numbers; got 7" in answer.json()["detail"]


def test_an_unknown_view_lists_the_known_ones(shared: Client) -> None:
    answer = shared.post("/search", json={"view": "nope", "vector": [1.0]})

    assert "must be one of text, id" in answer.json()["detail"]


MALFORMED = {
    "empty": b"",
    "cut off": b'{"items": [',
    "no JSON": b"items=1",
    "NaN": b'{"view": "text", "vector": [NaN]}',
    "Infinity": b'{"view": "text", "vector": [-Infinity]}',
    "overflow": b'{"view": "text", "vector": [1e999]}',
    "half a surrogate pair in a value": b'{"history": ["\\ud800"]}',
    "half a surrogate pair in a key": b'{"history": ["1"], "\\udfff": 1}',
    "not UTF-8": b'{"history": ["\xff"]}',
    "too many digits": b'{"k": ' + b"9" * 5000 + b"}",
    "absurdly nested": b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("path", ["/search", "/recommend", "/embed"])
def test_what_is_no_json_is_a_400(shared: Client, path: str, body: bytes) -> None:
    answer = shared.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "urn:llmemb:malformed"


@pytest.mark.parametrize("depth", [5, 50, 240, 300, 900])
def test_nested_lists_are_a_4xx(shared: Client, depth: int) -> None:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    body = json.dumps(embed_body(a=nested))

    answer = shared.post("/embed", content=body, headers={"content-type": "application/json"})

    assert answer.status_code in {400, 422}, answer.text
    assert len(answer.text) < 2000


HOSTILE = {
    "objects in an attribute": b'{"items":[{"item_id":"x","attributes":{"a":[%s{}]}}]}'
    % (b"{}," * 690_000),
    "numbers for items": b'{"items":[%s1]}' % (b"1," * 1_000_000),
    "texts for numbers": b'{"view":"text","vector":[%s""]}' % (b'"",' * 690_000),
    "numbers for ids": b'{"history":[%s1]}' % (b"1," * 1_000_000),
    "brackets": b"[" * 2_000_000,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_refused_quickly(shared: Client, body: bytes) -> None:
    path = "/embed" if b"items" in body else "/search" if b"view" in body else "/recommend"
    started = time.perf_counter()

    answer = shared.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code in {400, 422}
    assert len(answer.text) < 10_000
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_a_415(shared: Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    answer = shared.post("/recommend", content=b'{"history": ["1"]}', headers=headers)

    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_a_charset_beside_the_content_type_is_fine(shared: Client) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}

    answer = shared.post("/recommend", content=b'{"history": ["1"]}', headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/embed", 405), ("POST", "/info", 405), ("GET", "/info/", 404)],
)
def test_a_wrong_path_or_method_is_a_problem_too(
    shared: Client, method: str, path: str, status: int
) -> None:
    answer = shared.request(method, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert ("allow" in answer.headers) == (status == 405)


def test_a_body_that_says_it_is_too_large_is_a_413(serve: Serve) -> None:
    client = serve(max_body_bytes=2000)

    answer = client.post("/embed", json=embed_body(title="x" * 3000))

    assert answer.status_code == 413
    assert "2000 bytes" in answer.json()["detail"]


def test_a_streamed_body_is_cut_off_at_the_limit(serve: Serve) -> None:
    client = serve(max_body_bytes=2000)

    def endless() -> Iterator[bytes]:  # no Content-Length; chunked
        yield b'{"items": ["'
        for _ in range(5):
            yield b"x" * 1000

    answer = client.post("/embed", content=endless(), headers={"content-type": "application/json"})

    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:llmemb:body-too-large"


def test_a_request_id_is_echoed_or_made(shared: Client) -> None:
    echoed = shared.get("/info", headers={"x-request-id": "abc-123"})
    replaced = shared.get("/info", headers={"x-request-id": "no spaces allowed"})

    assert echoed.headers["x-request-id"] == "abc-123"
    assert len(replaced.headers["x-request-id"]) == 32


def test_a_defect_is_a_500_without_its_text(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve()
    client.parts.reading.shutdown()  # so that reading an item fails

    answer = client.get("/items/1")

    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:llmemb:unexpected"
    assert "shutdown" not in answer.text
    wait_for_record(caplog, "unexpected error", request_id=answer.headers["x-request-id"])
    assert "shutdown" not in caplog.text


def test_no_attribute_text_is_logged(shared: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    shared.embed({"item_id": "secret-id", "attributes": {"title": "secret text"}})

    wait_for_record(caplog, "request", route="/embed", status=200)
    assert not [each for each in caplog.records if "secret" in str(each.__dict__)]


def test_a_text_that_the_llm_cannot_read_is_a_422(shared: Client) -> None:
    answer = shared.post(
        "/embed", json={"items": [ITEM, {"item_id": "e", "attributes": {"_": True, "": 1}}]}
    )

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "items[1].attributes"


def test_the_documented_errors_are_problems(shared: Client) -> None:
    schema = shared.get("/openapi.json").json()

    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    (media_type,) = response["content"]
                    assert (media_type == "application/json") == path.startswith("/v1/"), path
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_docs_need_no_internet(shared: Client) -> None:
    page = shared.get("/docs").text

    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{asset}" in page
        assert shared.get(f"/static-offline-docs/{asset}").status_code == 200
