"""Who may ask for what."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.auth import is_open, read_keys, scope_needed
from service.settings import BadSettings, read_settings
from tests.service.conftest import Serve
from tests.service.half_sent import HalfSent
from tests.service.running import ROOT, Client

READER, WRITER, BOTH = "reader-key-5f2a", "writer-key-9b1c", "both-key-77d0"
ITEM = {"item_id": "x", "attributes": {"title": "X"}}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    hashed = hashlib.sha256(BOTH.encode()).hexdigest()
    path.write_text(
        f"# who is who\n\nshop read {READER}\n  loader\twrite {WRITER}\n"
        f"admin read,write sha256:{hashed.upper()}\n"
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def locked(serve: Serve, keys_file: Path) -> Client:
    return serve(api_keys_file=keys_file)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def recommended(client: Client, headers: dict[str, str]) -> httpx.Response:
    return client.post("/recommend", json={"history": ["1"]}, headers=headers)


REFUSED = {
    "nothing": {},
    "another key": bearer("reader-key-5f2b"),
    "a part of one": bearer(READER[:-1]),
    "more than one": bearer(f"{READER}, {WRITER}"),
    "another way": {"authorization": f"Basic {READER}"},
    "no key": {"authorization": "Bearer"},
    "the bare key": {"authorization": READER},
    "a hash for a key": bearer(hashlib.sha256(BOTH.encode()).hexdigest()),
    "a hash as in the file": bearer("sha256:" + hashlib.sha256(BOTH.encode()).hexdigest()),
    "bytes": {"authorization": b"Bearer \xff\xfe"},
}


def test_what_is_no_known_key_is_a_401(locked: Client) -> None:
    for name, headers in REFUSED.items():
        answer = recommended(locked, headers)  # type: ignore[arg-type]

        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["type"] == "urn:llmemb:unauthenticated"
        assert READER not in answer.text


def test_a_key_opens_what_its_scopes_say(locked: Client) -> None:
    attributes = {"attributes": {"title": "Ran"}}

    assert recommended(locked, bearer(READER)).status_code == 200
    assert recommended(locked, bearer(BOTH)).status_code == 200
    assert locked.get("/info", headers={"authorization": f"bearer {READER}"}).status_code == 200
    assert locked.put("/items/new", json=attributes, headers=bearer(WRITER)).status_code == 201
    assert locked.delete("/items/new", headers=bearer(BOTH)).status_code == 204


CATALOGUE = [
    ("GET", "/items", "read"),
    ("GET", "/items:export", "read"),
    ("GET", "/items/1/neighbours", "read"),
    ("GET", "/imports/nobody", "read"),
    ("POST", "/items:lookup", "read"),
    ("PATCH", "/items/1", "write"),
    ("POST", "/items:batch", "write"),
    ("POST", "/items:import?import_id=one", "write"),
]


@pytest.mark.parametrize(("method", "path", "scope"), CATALOGUE)
def test_the_catalogue_is_read_with_read_and_changed_with_write(
    locked: Client, method: str, path: str, scope: str
) -> None:
    right, wrong = (READER, WRITER) if scope == "read" else (WRITER, READER)

    refused = locked.request(method, path, headers=bearer(wrong))
    answer = locked.request(method, path, headers=bearer(right))

    assert refused.status_code == 403
    assert f"needs the scope {scope}" in refused.json()["detail"]
    assert answer.status_code in {200, 400, 404, 415}


def test_a_scope_that_lacks_is_a_403_that_names_it(locked: Client) -> None:
    writing = locked.put(
        "/items/new", json={"attributes": {"title": "Ran"}}, headers=bearer(READER)
    )
    reading = recommended(locked, bearer(WRITER))

    assert (writing.status_code, reading.status_code) == (403, 403)
    assert writing.json()["detail"] == "this needs the scope write; the key 'shop' has read"
    assert reading.json()["detail"] == "this needs the scope read; the key 'loader' has write"
    assert writing.json()["type"] == "urn:llmemb:forbidden"


def test_embedding_reads_and_indexing_writes(locked: Client) -> None:
    body = {"items": [ITEM]}

    assert locked.post("/embed", json=body, headers=bearer(READER)).status_code == 200
    refused = locked.post("/embed", json={**body, "index": True}, headers=bearer(READER))
    assert refused.status_code == 403
    assert "scope write" in refused.json()["detail"]
    stored = locked.post("/embed", json={**body, "index": True}, headers=bearer(BOTH))
    assert stored.status_code == 200
    assert locked.get("/items/x", headers=bearer(READER)).status_code == 200


def test_every_route_is_closed_but_for_the_open_ones(locked: Client) -> None:
    routes = [
        (method.upper(), re.sub(r"\{.*?\}", "1", path))
        for path, operations in locked.get("/openapi.json").json()["paths"].items()
        for method in operations
    ]

    answers = {each: locked.request(*each).status_code for each in routes}

    assert len(answers) >= 9
    assert {each for each, status in answers.items() if status != 401} == {
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
    }


@pytest.mark.parametrize(
    "path", ["/index.html", "/web", "/nope", "/docs/", "/health", "/health/live/", "/Metrics",
             "//metrics", "/static-offline-docs", "/health/../info", "/metrics%00", "/redoc"],
)  # fmt: skip
def test_a_path_that_is_not_known_needs_a_key_too(locked: Client, path: str) -> None:
    request = locked.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())

    assert locked.send(request).status_code == 401


def test_the_documentation_is_open_and_loads_what_it_needs(locked: Client) -> None:
    assert locked.get("/docs").status_code == 200
    assert locked.get("/openapi.json").status_code == 200
    assert locked.get("/static-offline-docs/swagger-ui.css").status_code == 200


def test_the_page_is_open_so_that_it_can_ask_for_a_key(locked: Client) -> None:
    assert locked.get("/").status_code == 200
    assert locked.get("/web/page.js").status_code == 200
    assert locked.get("/web/../info").status_code == 401


def test_a_post_that_is_not_listed_needs_write() -> None:
    assert scope_needed("POST", "/items:batch") == "write"
    assert scope_needed("PATCH", "/embed") == "write"
    assert scope_needed("OPTIONS", "/embed") == "write"
    assert scope_needed("HEAD", "/items/1") == "read"
    assert not is_open("/items/health/live")


def test_a_key_is_asked_for_before_a_byte_of_the_body(locked: Client) -> None:
    with HalfSent(locked.port, filler=1_000_000) as stranger:
        status, problem = stranger.answer()  # its end was never sent

    assert (status, problem["title"]) == (401, "Unauthorized")


def test_without_a_key_file_everybody_is_served(shared: Client) -> None:
    assert recommended(shared, {}).status_code == 200
    assert recommended(shared, bearer("whatever")).status_code == 200


BAD = {
    "two fields": ("shop s3cr3t-key", "2 fields"),
    "four fields": ("shop read s3cr3t-key # ours", "5 fields"),
    "a scope that is none": ("shop admin s3cr3t-key", "scopes are read, write or read,write"),
    "scopes in place of the key": ("shop s3cr3t-key read", "scopes are"),
    "a scope twice": ("shop read,read s3cr3t-key", "scopes are"),
    "no scope": ("shop , s3cr3t-key", "scopes are"),
    "a name with blanks in it": ("a=b read s3cr3t-key", "a name is"),
    "half a hash": ("shop read sha256:s3cr3t-key", "64 hex digits"),
    "a key that no header can carry": ("shop read s3cr3t-ключ", "visible ASCII"),
    "a name twice": ("first read s3cr3t-key", "its name stands twice"),
    "a key twice": ("shop read first-key", "its key stands twice"),
}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_by_its_number_and_not_shown(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"first read first-key\n# a comment\n{line}\n", encoding="utf-8")

    with pytest.raises(BadSettings, match=f"line 3 of {path}: .*{reason}") as error:
        read_keys(path)

    assert "s3cr3t" not in str(error.value)
    assert "first-key" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "holds no key"), (b"# none\n\n", "holds no key"), (b"\xff read key\n", "not UTF-8")],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)

    with pytest.raises(BadSettings, match=reason):
        read_keys(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="LLMEMB_API_KEYS_FILE is .*nowhere: No such file"):
        read_keys(tmp_path / "nowhere")


def test_plain_keys_that_everybody_may_read_are_a_warning(
    keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_keys(keys_file)
    assert caplog.messages == []

    keys_file.chmod(0o644)
    read_keys(keys_file)
    (message,) = caplog.messages
    assert "holds 2 plain keys" in message

    hashed = [line for line in keys_file.read_text().splitlines() if "sha256:" in line]
    keys_file.write_text("\n".join(hashed))
    read_keys(keys_file)
    assert len(caplog.messages) == 1


def test_the_keys_themselves_are_not_kept(keys_file: Path) -> None:
    import gc

    keys = read_keys(keys_file)

    assert READER not in repr(keys.__dict__)
    assert READER.encode() not in repr(gc.get_referents(keys)).encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_without_keys_this_machine_alone_may_ask(tmp_path: Path, host: str) -> None:
    assert read_settings(bundle=tmp_path, host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "example.org", "fe80::1"])
def test_without_keys_an_address_that_others_reach_is_refused(
    tmp_path: Path, keys_file: Path, host: str
) -> None:
    with pytest.raises(BadSettings) as error:
        read_settings(bundle=tmp_path, host=host)

    for name in ("LLMEMB_HOST", "LLMEMB_API_KEYS_FILE", "LLMEMB_ALLOW_ANONYMOUS"):
        assert name in str(error.value)
    assert read_settings(bundle=tmp_path, host=host, api_keys_file=keys_file).host == host
    assert read_settings(bundle=tmp_path, host=host, allow_anonymous="1").host == host


def test_an_app_is_not_made_with_keys_that_cannot_be_read(tmp_path: Path) -> None:
    settings = read_settings(bundle=tmp_path, api_keys_file=tmp_path / "nowhere")

    with pytest.raises(BadSettings):
        create_app(settings)


def test_a_bad_line_stops_the_process_with_one_sentence_and_status_2(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("shop read-only s3cr3t-key\n")

    done = subprocess.run(
        [sys.executable, "-m", "service", f"--bundle={tmp_path}"],
        cwd=ROOT, env={"LLMEMB_API_KEYS_FILE": str(path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert f"line 1 of {path}" in done.stderr
    assert "s3cr3t" not in done.stderr + done.stdout
    assert done.stderr.count("\n") == 1
