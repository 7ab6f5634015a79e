"""Requests that nobody wrote: no defect of the service may show.

One half comes out of the service's own OpenAPI document by schemathesis, what fits it and what
does not; the other are valid bodies, damaged byte by byte and value by value, with a fixed seed.
A request fails if its answer is a 500 or 502, if an error has another shape than its route
promises, or if no answer comes at all. It is printed as a curl command.
"""

import argparse
import base64
import copy
import http.client
import json
import random
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.films import Films
from benchmarks.serving.servers import ROOT, Server, ours, tiny
from benchmarks.serving.throughput import Figures

DEFECTS = {500, 502}
SHOWN = 20  # failures; the file has all of them
REPORT = ROOT / "runs" / "fuzz-failures.txt"
PROBLEM = "application/problem+json"
SEED = 20
MOST_TURNS = 5


@dataclass
class Sent:
    """One request, byte for byte."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def curl(self, port: int) -> str:
        """How to send it again from a shell."""
        told = ["curl", "-i", "-X", self.method, f"http://127.0.0.1:{port}{self.path}"]
        for name, value in self.headers.items():
            told += ["-H", f"{name}: {value}"]
        if self.body is None:
            return shlex.join(told)
        encoded = base64.b64encode(self.body).decode()
        return f"echo {encoded} | base64 -d | {shlex.join([*told, '--data-binary', '@-'])}"


class Judge:
    """Sends requests over one connection, and keeps those that fail."""

    def __init__(self, server: Server) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.defects = 0
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def send(self, sent: Sent) -> None:
        """Send one request; look at the answer."""
        kept = self._connection.sock is not None
        try:
            self._put(sent)
        except (ValueError, UnicodeError, http.client.HTTPException):
            self._connection.close()  # Python's client refuses to send such a thing
            return
        try:
            self._connection.endheaders(sent.body)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if self._server.process.poll() is not None:
                again = sent.curl(self._server.port)
                raise SystemExit(f"the service ended after\n{again}") from None
            if kept and isinstance(error, ConnectionError):
                self.send(sent)  # the server had let the connection go, as it may between requests
                return
            self._fail(sent, f"no answer: {error!r}")
            return
        self.statuses[answer.status] += 1
        wrong = complaint(answer.status, answer.headers.get_content_type(), sent.path, body)
        self.defects += answer.status in DEFECTS
        if wrong:
            self._fail(sent, f"{answer.status}, {wrong}: {body[:200]!r}")

    def _put(self, sent: Sent) -> None:
        self._connection.putrequest(sent.method, sent.path, skip_accept_encoding=True)
        for name, value in sent.headers.items():
            if name.lower() != "content-length":
                self._connection.putheader(name, value)
        if sent.body is not None:
            self._connection.putheader("Content-Length", str(len(sent.body)))

    def _fail(self, sent: Sent, why: str) -> None:
        self.failures.append(why)
        told = f"FAILED {why}\n  {sent.curl(self._server.port)}"
        REPORT.parent.mkdir(exist_ok=True)
        with REPORT.open("a") as report:
            report.write(told + "\n")
        if len(self.failures) <= SHOWN:
            print(told if len(told) < 2000 else f"{told[:2000]}… (whole in {REPORT})", flush=True)


def complaint(status: int, kind: str, path: str, body: bytes) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if status in DEFECTS:
        return "a defect"
    if status < 400:
        return None
    try:
        told = json.loads(body)
    except ValueError:
        return f"an error as {kind}, which is no JSON"
    if path.startswith("/v1/"):
        error = told.get("error") if isinstance(told, dict) else None
        fine = isinstance(error, dict) and {"message", "type"} <= error.keys()
        return None if fine else "an error of another shape than OpenAI's"
    if kind != PROBLEM:
        return f"an error as {kind}"
    lacks = {"type", "title", "status", "detail"} - told.keys()
    return f"a problem without {sorted(lacks)}" if lacks else None


def fuzz(given: argparse.Namespace) -> Figures:
    """So many generated requests, and so many damaged ones."""
    try:
        import schemathesis  # noqa: F401, PLC0415
    except ImportError:
        raise SystemExit(
            "schemathesis is missing; run `scripts/install.sh service,training,test,bench`"
        ) from None
    REPORT.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="tiny-") as folder:
        # A tiny LLM reads whatever comes at once; the code around it is the same.
        bundle = tiny(Path(folder))
        with ours(bundle, log_level="error") as us:
            generated = Judge(us)
            generate(us, generated, given.requests)
            print(f"generated: {dict(sorted(generated.statuses.items()))}", flush=True)
            damaged = Judge(us)
            routes = us.ask("/openapi.json")["paths"]

            def known(method: str, path: str) -> bool:
                shape = re.sub(r"^/items/.*", "/items/{item_id}", path)
                return method.lower() in routes.get(shape, {})

            for sent in damage(Films(bundle), given.requests, known):
                damaged.send(sent)
            print(f"damaged: {dict(sorted(damaged.statuses.items()))}", flush=True)
            us.ask("/health/ready")
            log = us.log.read_text(errors="replace")
            if "Traceback" in log:
                print(f"the service's log has a traceback:\n{log[-3000:]}")
    count = sum(generated.statuses.values()), sum(damaged.statuses.values())
    failures = len(generated.failures) + len(damaged.failures)
    unit = (
        f"answers with 500 or 502 to {count[0]} generated and {count[1]} damaged requests; "
        f"{failures} failed in any way"
    )
    return {"serve.fuzz_5xx": (float(generated.defects + damaged.defects), unit)}


def generate(server: Server, judge: Judge, count: int) -> None:
    """Requests out of the OpenAPI document, the same number of each operation and kind."""
    import schemathesis  # noqa: PLC0415
    from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: PLC0415
    from hypothesis.errors import Unsatisfiable  # noqa: PLC0415
    from schemathesis.generation import GenerationMode  # noqa: PLC0415

    @schemathesis.serializer("application/x-ndjson")
    def lines(_: object, value: object) -> bytes:
        """A generated body of an import: one object a line, or whatever it is as a line."""
        some = value if isinstance(value, list) else [value]
        return b"".join(json.dumps(each, default=str).encode() + b"\n" for each in some)

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    turn = 0
    while (left := count - sum(judge.statuses.values())) > 0 and turn < MOST_TURNS:
        # Some take next to nothing and soon say all they can; the others get what is left.
        kinds = [(o, mode) for o in operations for mode in GenerationMode if not turn or o.body]
        for operation, mode in kinds:

            @seed(SEED + turn)
            @settings(
                max_examples=-(-left // len(kinds)),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:  # noqa: ANN401 - schemathesis' own
                judge.send(as_sent(case))

            with suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
                ask()
        turn += 1


def as_sent(case: Any) -> Sent:  # noqa: ANN401 - schemathesis' own
    """A generated case as the bytes that requests would send."""
    import requests  # noqa: PLC0415 - schemathesis needs it

    told = case.as_transport_kwargs(base_url="http://127.0.0.1")
    fields = ("method", "url", "headers", "data", "json", "params", "cookies", "files")
    prepared = requests.Request(**{n: told[n] for n in fields if told.get(n) is not None}).prepare()
    body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
    return Sent(prepared.method or "GET", prepared.path_url, body, dict(prepared.headers))


# --- damaged bodies --------------------------------------------------------------------------

STRANGE: list[object] = [
    None, True, False, 0, -1, 1.5, 10**400, -(2**63), 1e308, "", " ", "\x00", "\ud800", "é" * 300,
    "a" * 100_000, "\u202e", "NaN", [], {}, [[]], [[[[[[[[]]]]]]]], {"": ""}, {"a": {"b": {}}},
    ["x"] * 2000,
]  # fmt: skip
RAW = [b"NaN", b"Infinity", b"1e999", b"-0", b"\xff\xfe", b'"\\ud800"', b"[" * 5000, b"{" * 500]
HEADERS = [
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=latin-1"},
    {"Content-Type": ""},
    {"Content-Encoding": "gzip"},
    {"X-Request-ID": "x" * 500},
    {"Accept": "text/html"},
]


def damage(films: Films, count: int, known: Callable[[str, str], bool]) -> Iterator[Sent]:
    """Valid requests with something broken in them; the same ones every time.

    Args:
        known: whether the service has a route for a method and a path.
    """
    chance = random.Random(SEED)
    valid = [each for each in requests_of(films) if known(each[0], each[1])]
    for _ in range(count):
        method, path, body = chance.choice(valid)
        damaged = copy.deepcopy(body)
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            damaged = altered(chance, damaged)
        told = json.dumps(damaged, ensure_ascii=chance.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
        for _ in range(chance.choice([0, 0, 1, 1, 2, 8])):
            told = scratched(chance, told)
        headers = {"Content-Type": "application/json"}
        if chance.random() < 0.1:
            headers |= chance.choice(HEADERS)
        yield Sent(method, path, told, headers)


def requests_of(films: Films) -> list[tuple[str, str, Any]]:
    """Requests that are fine, of every route that takes a body."""
    items = [
        {"item_id": name, "attributes": film}
        for name, film in zip(films.ids[:3], films.known[:3], strict=True)
    ]
    texts = [films.text(film) for film in films.known[:2]]
    return [
        ("POST", "/embed", {"items": items, "view": "text", "index": False}),
        ("POST", "/embed", {"items": items[:1], "view": "text", "encoding": "base64"}),
        ("POST", "/recommend", {"history": films.ids[:5], "k": 5, "exclude": films.ids[5:7]}),
        ("POST", "/search", {"view": "text", "vector": [0.1] * 8, "k": 3, "exclude": []}),
        ("PUT", "/items/fuzzed", {"attributes": films.known[0]}),
        ("PUT", "/items/a%2Fb%00", {"attributes": films.known[1]}),
        ("PATCH", "/items/fuzzed", {"attributes": {"title": "x"}}),
        ("POST", "/items:batch", {"items": items}),
        ("POST", "/v1/embeddings", {"model": "llmemb", "input": texts}),
    ]


def altered(chance: random.Random, body: Any) -> Any:  # noqa: ANN401 - any JSON
    """A body with one value of its tree gone, doubled, moved or strange."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:  # noqa: ANN401 - any JSON
        keys = (
            value
            if isinstance(value, dict)
            else range(len(value))
            if isinstance(value, list)
            else ()
        )
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(body)
    if not places or chance.random() < 0.02:
        return chance.choice(STRANGE)
    parent, key = chance.choice(places)
    holder, name = chance.choice(places)
    elsewhere = holder[name]
    ways: list[Callable[[], None]] = [
        lambda: parent.__setitem__(key, copy.deepcopy(chance.choice(STRANGE))),
        lambda: parent.__setitem__(key, copy.deepcopy(elsewhere)),
        lambda: parent.__delitem__(key),
    ]
    if isinstance(parent, dict):
        ways.append(lambda: parent.__setitem__(str(key) + chance.choice(["_", "\ud800", " "]), 1))
    else:
        ways.append(lambda: parent.extend(copy.deepcopy(parent[key : key + 1]) * 100))
    chance.choice(ways)()
    return body


def scratched(chance: random.Random, body: bytes) -> bytes:
    """A body with some bytes gone, doubled, changed or strange."""
    at = chance.randrange(len(body) + 1)
    end = min(len(body), at + chance.randrange(1, 9))
    return chance.choice(
        [
            body[:at],
            body[:at] + body[end:],
            body[:end] + body[at:],
            body[:at] + bytes(chance.randrange(256) for _ in range(end - at)) + body[end:],
            body[:at] + chance.choice(RAW) + body[end:],
            body[at:],
        ]
    )
