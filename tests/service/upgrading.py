"""Bundles to upgrade to, and what a test asks of an upgrade."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.manifest import read_manifest
from models.prompt import PromptTemplate
from service.serving import Serving
from tests.service.running import Client, wait_until
from tests.tiny import write_llm, write_tiny_bundle

Status = dict[str, Any]
HISTORIES = [["1"], ["2", "5"], ["new0", "3"], ["new1", "new2", "new4"]]
WAIT_S = 300  # threads of the lowest priority on a machine that may be busy


def write_bundles(folder: Path, llm: Path) -> Path:
    """Of the first bundle's LLM `same`; of another one `other`; `narrow` reads no title; `damaged`
    is not what was exported.
    """
    write_tiny_bundle(folder / "same", llm, seed=1)
    write_tiny_bundle(folder / "other", write_llm(folder.parent / "llm", seed=5), seed=2)
    narrow = PromptTemplate(noun="film", exclude=("title",))
    write_tiny_bundle(folder / "narrow", llm, seed=3, template=narrow)
    shutil.copytree(folder / "same", folder / "damaged")
    with (folder / "damaged" / "projection.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    return folder


def hash_of(folder: Path) -> str:
    return read_manifest(folder).bundle_hash


def ask(client: Client, bundle: str | None = None, **fields: object) -> Status:
    """Ask for another bundle; what is answered at once."""
    named = {} if bundle is None else {"bundle": bundle}
    answer = client.post("/admin/bundles", json={**named, **fields})
    assert answer.status_code == 202, answer.text
    status: Status = answer.json()
    return status


def ended(client: Client) -> Status:
    """The status of the upgrade that runs, once it is over."""
    deadline = time.monotonic() + WAIT_S
    while True:
        status: Status = client.get("/admin/bundles").json()["upgrade"]
        if status["state"] in {"flipped", "held", "cancelled", "failed"}:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.02)


def upgraded(client: Client, bundle: str | None = None, **fields: object) -> Status:
    """Ask for another bundle, and wait until it is over."""
    ask(client, bundle, **fields)
    return ended(client)


def put(client: Client, item_id: str, title: str, **attributes: object) -> None:
    answer = client.put(f"/items/{item_id}", json={"attributes": {"title": title, **attributes}})
    assert answer.status_code in {200, 201}, answer.text


def put_some(client: Client, count: int = 6) -> None:
    for number in range(count):
        put(client, f"new{number}", f"A new film {number * number}", genres=["Drama"])


class Ranked(list[tuple[str, float]]):
    """Items and scores; equal to others that differ by what company in a batch makes of floats."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list) or [i for i, _ in self] != [i for i, _ in other]:
            return False
        return all(
            abs(mine - theirs) < 1e-3 for (_, mine), (_, theirs) in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]


def answers(client: Client, histories: list[list[str]]) -> list[Ranked]:
    """What is recommended for histories."""
    return [Ranked(client.recommended(each, k=30)) for each in histories]


@contextmanager
def stopped_at(upgrades: Any, name: str, monkeypatch: Any) -> Iterator[Any]:  # noqa: ANN401
    """Upgrades wait at a method until the event in hand is set."""
    import threading

    reached, go = threading.Event(), threading.Event()
    method = getattr(upgrades, name)

    def waiting(*given: Any, **told: Any) -> Any:  # noqa: ANN401
        reached.set()
        assert go.wait(WAIT_S)
        return method(*given, **told)

    with monkeypatch.context() as patch:
        patch.setattr(upgrades, name, waiting)
        yield reached, go
        go.set()


def wait_until_over(serving: Serving) -> None:
    """Wait for an upgrade without asking the service."""
    wait_until(lambda: serving.upgrade and not serving.upgrade.running, WAIT_S)
