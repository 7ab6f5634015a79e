"""A thin, typed client of the service. Copy this file; it needs httpx alone.

    with Client("http://127.0.0.1:8000", key="…") as service:
        service.put("m1", {"title": "The Matrix", "genres": ["Action", "Sci-Fi"]})
        for item in service.recommend(["50", "172", "m1"], k=5)["items"]:
            print(item["item_id"], item["score"])

Answers are the service's own JSON, typed; fields that a newer service adds are there, too, and
fields of requests that this file does not know go in as keywords. An error is a Problem, which
says what is wrong and what to do. A request that is refused because the service is busy, starting
or restarting is sent again after its Retry-After, until it has waited for `patience_s`.

`python examples/client.py` asks a running service for what it is, and recommends.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NotRequired, Self, TypedDict, cast
from urllib.parse import quote

import httpx

AttributeValue = str | int | float | bool | None | list[str] | list[int] | list[float] | list[bool]
Attributes = Mapping[str, AttributeValue]
Filter = Mapping[str, object]  # as POST /recommend has it
BUSY = {429, 503}  # nothing was done; the same request may succeed later


class NewItem(TypedDict):
    """An item as it is sent."""

    item_id: str
    attributes: Attributes
    hidden: NotRequired[bool]
    if_version: NotRequired[int]  # in a batch: only if the item has this version; 0: if it is new


class CatalogueItem(TypedDict):
    """An item of the catalogue."""

    item_id: str
    attributes: dict[str, Any]
    hidden: bool
    version: int
    views: list[str]


class EmbeddedItem(TypedDict):
    """The vectors of an item, by view."""

    item_id: str
    vectors: dict[str, list[float]]
    tokens: int
    truncated: list[str]
    cached: bool


class InlineItem(TypedDict, total=False):
    """An item of a history that need not be in the catalogue: one of the two."""

    attributes: Attributes
    vectors: Mapping[str, Sequence[float] | str]  # by view, as embed answers them; tell the bundle


class ScoredItem(TypedDict):
    """An item and its score; higher is better."""

    item_id: str
    score: float


class RecommendedItem(ScoredItem):
    """A recommended item, and why it is, if that was asked for."""

    popularity: Literal["head", "tail", "cold"]
    explored: NotRequired[bool]  # True where explore gave it its place
    because: NotRequired[str]  # with explain="history"; not of an inline item
    because_at: NotRequired[int]  # the same as a position in the history
    attributes: NotRequired[dict[str, float]]  # with explain="attributes"


class Recommendation(TypedDict):
    """What is recommended for a history, best first."""

    bundle: str
    recommendation_id: str
    strategy: str  # `fallback` where nothing is known of the user
    items: list[RecommendedItem]
    unknown_history: list[str]
    degraded: list[str]
    took_ms: float


class Found(TypedDict):
    """What is nearest to a vector or an item, best first."""

    bundle: str
    view: str
    items: list[ScoredItem]
    degraded: list[str]
    took_ms: float


class Lookup(TypedDict):
    """Items by their ids, in their order, each once."""

    items: list[CatalogueItem]
    unknown: list[str]


class CatalogueMap(TypedDict):
    """The catalogue on a plane, in columns: what stands at one place of each is of one item."""

    bundle: str
    view: str
    total: int
    ids: list[str]
    x: list[float]
    y: list[float]
    interactions: list[int]
    values: NotRequired[list[Any]]  # of the attribute that was asked for


class FieldError(TypedDict):
    """One thing that is wrong with a request."""

    field: str
    message: str
    value: str | None


class BatchResult(TypedDict):
    """What became of one item of a batch."""

    item_id: str | None
    status: int
    version: int | None
    changed: bool
    errors: list[FieldError]


class BatchAnswer(TypedDict):
    """Results in the order of the batch."""

    bundle: str
    failed: int
    results: list[BatchResult]


class ImportStatus(TypedDict):
    """How far an import has come."""

    import_id: str
    state: str
    durable_line: int
    created: int
    changed: int
    unchanged: int
    error: str | None


class Problem(Exception):
    """An answer that says what is wrong (RFC 9457).

    Attributes:
        status: of HTTP.
        type: the error's stable name, such as `urn:llmemb:unknown-item`.
        detail: one sentence.
        errors: the fields that are wrong.
        request_id: by which the service's log knows the request.
        retry_after_s: when to come again; None for an error that does not pass.
    """

    def __init__(self, answer: httpx.Response) -> None:
        body: Mapping[str, Any] = {}
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            body = answer.json()
        self.status = answer.status_code
        self.type: str = body.get("type", "about:blank")
        # Something between may have answered, and in another way.
        self.detail: str = body.get("detail", answer.reason_phrase)
        self.errors: list[FieldError] = body.get("errors", [])
        self.request_id: str = answer.headers.get("x-request-id", "")
        self.retry_after_s = _retry_after_s(answer)
        super().__init__(f"{self.status} {self.detail} (request {self.request_id})")


class NotFound(Problem):
    """There is no such item or import (404)."""


class PreconditionFailed(Problem):
    """The item has another version; nothing was changed (412)."""


class Invalid(Problem):
    """A field cannot be used (422); `errors` names it."""


class Busy(Problem):
    """Still too much to do, or not ready, when the patience was over (429, 503)."""


KINDS: Mapping[int, type[Problem]] = {
    404: NotFound,
    412: PreconditionFailed,
    422: Invalid,
    429: Busy,
    503: Busy,
}


class Client:
    """One service; safe to share between threads, as httpx.Client is.

    Args:
        key: an API key, where the service has them.
        patience_s: how long a request waits, in all, to be sent again.
        http: a client of your own, for proxies, certificates or a timeout; `url` is its base.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        patience_s: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        self._http = http or httpx.Client(timeout=35)  # the service's own deadline is 30 s
        self._http.base_url = httpx.URL(url)
        if key:
            self._http.headers["authorization"] = f"Bearer {key}"
        self._patience_s = patience_s

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    # --- vectors and recommendations ----------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is served: views, limits, hashes, measured quality, attributes."""
        return cast(dict[str, Any], self._ask("GET", "/info"))

    def embed(
        self, items: Sequence[NewItem], view: str | None = None, index: bool = False
    ) -> list[EmbeddedItem]:
        """The vectors of items, in their order; at most `limits.max_items` of info() at once.

        Args:
            view: this one alone, or `llm` for the LLM's own; without it all that an item has.
            index: also put them into the catalogue.
        """
        body = {"items": items, "view": view, "index": index}
        return cast(list[EmbeddedItem], self._ask("POST", "/embed", body)["results"])

    def recommend(
        self,
        history: Sequence[str | InlineItem],
        k: int = 25,
        exclude: Sequence[str] = (),
        filter: Filter | None = None,  # noqa: A002 - as the field of the request
        strategy: str | None = None,
        diversity: float | None = None,
        explore: float | None = None,
        seed: int | None = None,
        **more: object,
    ) -> Recommendation:
        """The k items most likely to follow a history, oldest first.

        Args:
            history: ids, or items by their attributes or vectors; with vectors, also
                `bundle=` of the answer that they came with. Empty for somebody unknown.
            filter: only items that match, such as `{"attribute": "genres", "eq": "Comedy"}`.
            strategy: one of `strategies` of info(); `best` if none is told.
            diversity: 0 to 1; how much an item loses that is like one before it.
            explore: 0 to 1; how probably a place is given to an item that few know.
            seed: of what is explored; the same seed, the same answer.
            more: other fields of the request, such as `explain="history"`.

        Raises:
            NotFound: the catalogue has none of the history's items.
        """
        body = {
            "history": list(history),
            "k": k,
            "exclude": list(exclude),
            "filter": filter,
            "strategy": strategy,
            "diversity": diversity,
            "explore": explore,
            "seed": seed,
            **more,
        }
        return cast(Recommendation, self._ask("POST", "/recommend", body))

    def search(
        self,
        view: str,
        vector: Sequence[float],
        k: int = 25,
        filter: Filter | None = None,  # noqa: A002 - as the field of the request
        **more: object,
    ) -> Found:
        """The k items nearest to a vector of a view, by inner product; filter as of recommend."""
        body = {"view": view, "vector": list(vector), "k": k, "filter": filter, **more}
        return cast(Found, self._ask("POST", "/search", body))

    def neighbours(
        self,
        item_id: str,
        k: int = 25,
        view: str | None = None,
        filter: Filter | None = None,  # noqa: A002 - as the field of the request
    ) -> Found:
        """The k items nearest to an item; filter as of recommend."""
        path = f"{_path(item_id)}/neighbours"
        told = None if filter is None else json.dumps(filter)
        return cast(Found, self._ask("GET", path, params={"k": k, "view": view, "filter": told}))

    def map(self, attribute: str | None = None, limit: int | None = None) -> CatalogueMap:
        """Where the catalogue's items stand on a plane; of more than limit a sample.

        Args:
            attribute: its values come, too.
        """
        params = {"attribute": attribute, "limit": limit}
        return cast(CatalogueMap, self._ask("GET", "/map", params=params))

    # --- the catalogue ------------------------------------------------------------------------

    def get(self, item_id: str) -> CatalogueItem:
        """An item.

        Raises:
            NotFound: there is none.
        """
        return cast(CatalogueItem, self._ask("GET", _path(item_id)))

    def lookup(self, item_ids: Sequence[str]) -> Lookup:
        """Some items, up to 1000, and the ids that the catalogue lacks."""
        return cast(Lookup, self._ask("POST", "/items:lookup", {"item_ids": list(item_ids)}))

    def put(
        self,
        item_id: str,
        attributes: Attributes,
        hidden: bool | None = None,
        if_version: int | None = None,
    ) -> CatalogueItem:
        """Add an item, or replace all attributes of one; it can be recommended at once.

        Args:
            if_version: only if the item has this version; 0: only if it is new.

        Raises:
            PreconditionFailed: it has not.
        """
        body = {"attributes": attributes, "hidden": hidden}
        return cast(CatalogueItem, self._ask("PUT", _path(item_id), body, if_version=if_version))

    def patch(
        self,
        item_id: str,
        attributes: Attributes,
        if_version: int | None = None,
        **more: object,
    ) -> CatalogueItem:
        """Change some attributes of an item; None takes one out, the others stay."""
        body = {"attributes": attributes, **more}
        return cast(CatalogueItem, self._ask("PATCH", _path(item_id), body, if_version=if_version))

    def delete(self, item_id: str, if_version: int | None = None) -> None:
        """Take an item out for good."""
        self._ask("DELETE", _path(item_id), if_version=if_version)

    def batch(self, items: Sequence[NewItem], atomic: bool = False) -> BatchAnswer:
        """Add or change some items by one commit, each with a result of its own, or all or none."""
        return cast(
            BatchAnswer, self._ask("POST", "/items:batch", {"items": items, "atomic": atomic})
        )

    def items(self, q: str | None = None, page: int = 500) -> Iterator[CatalogueItem]:
        """The items of the catalogue, or those that hold the words of `q`."""
        cursor: str | None = None
        while True:
            answer = self._ask("GET", "/items", params={"q": q, "cursor": cursor, "limit": page})
            yield from answer["items"]
            cursor = answer["next"]
            if cursor is None:
                return

    def import_file(self, path: Path, import_id: str) -> ImportStatus:
        """Add or change the items of a JSONL file of any length.

        After a broken connection or a restart it is sent again, and the service goes on after the
        last line that is stored.

        Raises:
            Invalid: a line is wrong; all before it are stored.
        """

        def send() -> httpx.Response:
            with path.open("rb") as lines:
                return self._http.post(
                    "/items:import",
                    params={"import_id": import_id},
                    content=lines,
                    headers={"content-type": "application/x-ndjson"},
                    timeout=httpx.Timeout(35, read=None),  # as long as the file is
                )

        return cast(ImportStatus, self._answer(send, again={*BUSY, 409, 504}).json())

    def import_status(self, import_id: str) -> ImportStatus:
        """How far an import has come, while it runs and after."""
        return cast(ImportStatus, self._ask("GET", f"/imports/{quote(import_id, safe='')}"))

    def export(self) -> Iterator[NewItem]:
        """All items, as the catalogue is at one moment, and as import_file takes them.

        Raises:
            httpx.TransportError: it was broken off; what came is not all.
        """
        with self._http.stream("GET", "/items:export") as answer:
            if answer.status_code != 200:
                answer.read()
                raise _problem(answer)
            for line in answer.iter_lines():
                yield cast(NewItem, json.loads(line))

    # --- how ----------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        if_version: int | None = None,
    ) -> Any:  # noqa: ANN401 - the caller casts it
        given = {name: value for name, value in (params or {}).items() if value is not None}
        headers = {}
        if if_version is not None:
            headers = {"if-match": f'"{if_version}"'} if if_version else {"if-none-match": "*"}
        sent = self._http.build_request(
            method,
            path,
            params=cast(Any, given),
            headers=headers,
            # What is None is left to the service, at the top: inside an item it takes out.
            json=body and {name: value for name, value in body.items() if value is not None},
        )
        # Done twice these fail; so they are sent again only where nobody can have received them.
        once = method == "DELETE" or if_version is not None
        lost = httpx.ConnectError if once else httpx.TransportError
        answer = self._answer(lambda: self._http.send(sent), BUSY, lost)
        return answer.json() if answer.content else None

    def _answer(
        self,
        send: Callable[[], httpx.Response],
        again: Iterable[int],
        lost: type[httpx.TransportError] = httpx.TransportError,
    ) -> httpx.Response:
        """The answer to a request.

        Args:
            again: statuses after which it is sent again.
            lost: errors after which it is, too.

        Raises:
            Problem: it is an error, of another kind or still when the patience was over.
            httpx.TransportError: nobody answers.
        """
        left_s = self._patience_s
        while True:
            wait_s = 1.0
            try:
                answer = send()
            except lost:
                if wait_s > left_s:
                    raise
            else:
                if answer.is_success:
                    return answer
                problem = _problem(answer)
                wait_s = problem.retry_after_s or wait_s
                if answer.status_code not in again or wait_s > left_s:
                    raise problem
            left_s -= wait_s
            time.sleep(wait_s)


def _problem(answer: httpx.Response) -> Problem:
    return KINDS.get(answer.status_code, Problem)(answer)


def _retry_after_s(answer: httpx.Response) -> float | None:
    """The seconds of Retry-After; a proxy's date, which is rare, is None."""
    told = answer.headers.get("retry-after", "")
    return float(told) if told.isdigit() else None


def _path(item_id: str) -> str:
    # Dots, too: `..` as a part of a path would lead up.
    return "/items/" + quote(item_id, safe="").replace(".", "%2E")


def main() -> None:
    """Say what a service is, and recommend for a history."""
    parser = argparse.ArgumentParser(description="Ask a running service for recommendations.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="an API key, where the service has them")
    parser.add_argument("history", nargs="*", help="item ids, oldest first")
    arguments = parser.parse_args()
    try:
        with Client(arguments.url, arguments.key, patience_s=10) as service:
            info = service.info()
            print(f"{info['name']} has {info['items']} items, read by {info['llm']}")
            history = arguments.history
            if not history:
                first = next(service.items(page=1), None)
                if first is None:
                    sys.exit(f"{arguments.url}: the catalogue is empty; put an item into it first")
                history = [first["item_id"]]
            items = service.recommend(history, k=10, explain="history")["items"]
            if not items:
                sys.exit(f"{arguments.url}: the catalogue has nothing else to recommend")
            found = service.lookup([item["item_id"] for item in items])["items"]
            titles = {each["item_id"]: each["attributes"].get("title", "") for each in found}
            for item in items:
                title = titles.get(item["item_id"], "")  # it may have gone meanwhile
                why = item.get("because", "")
                print(f"{item['score']:8.3f}  {item['item_id']}  {title}  <- {why}")
    except (Problem, httpx.TransportError) as error:
        sys.exit(f"{arguments.url}: {error}")


if __name__ == "__main__":
    main()
