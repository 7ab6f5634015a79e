"""Items at vectors that a test can reckon with, put and found through the API of any store."""

import json
import uuid
from typing import Any
from urllib.parse import quote

from tests.service.running import Client

FILM = {"title": "Ran", "release_year": "1985", "genres": ["Drama", "War"]}
FAR = [0.0] * 8  # as far from everything as a vector can be: its inner products are 0


def path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


def put(client: Client, item_id: str, **fields: object) -> dict[str, Any]:
    answer = client.put(path(item_id), json={"attributes": FILM, **fields})
    assert answer.status_code in {200, 201}, answer.text
    body: dict[str, Any] = answer.json()
    return body


def put_vectors(client: Client, items: dict[str, dict[str, Any]]) -> None:
    """Have items with `attributes`, and the rest of the dictionary, at vectors of view text."""
    bundle = client.get("/info").json()["bundle"]
    lines = [
        json.dumps({"item_id": item_id, "attributes": FILM, **fields})
        for item_id, fields in items.items()
    ]
    answer = client.post(
        "/items:import",
        params={"import_id": uuid.uuid4().hex, "bundle": bundle},
        content="\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["durable_line"] == len(items)


def at(first: float, second: float = 0.0) -> list[float]:
    """A vector of view text."""
    return [first, second, *FAR[2:]]


def found(client: Client, **fields: object) -> list[tuple[str, float]]:
    """What /search finds near (1, 0, …) in view text: inner products are first components."""
    query = {"view": "text", "vector": at(1), "k": 3, **fields}
    answer = client.post("/search", json=query)
    assert answer.status_code == 200, answer.text
    return [(each["item_id"], each["score"]) for each in answer.json()["items"]]


def ids(client: Client, **fields: object) -> list[str]:
    return [item_id for item_id, _ in found(client, **fields)]
