"""Answers, writes and imports before, while and after another bundle becomes active."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from service.serving import Serving
from service.upgrade import Upgrade
from tests.service.running import Client, in_this_process, wait_until
from tests.service.upgrading import (
    HISTORIES,
    WAIT_S,
    Ranked,
    answers,
    ask,
    ended,
    hash_of,
    put,
    put_some,
    stopped_at,
    upgraded,
    wait_until_over,
)

LINES = {"content-type": "application/x-ndjson"}


def change_some(client: Client) -> None:
    """All that can happen to items; to be done after put_some."""
    put(client, "new1", "Quite another film")
    put(client, "new9", "The latest")
    put(client, "5", "Not what training knew")
    assert client.patch("/items/new2", json={"hidden": True}).status_code == 200
    assert client.patch("/items/new3", json={"attributes": {"year": 1950}}).status_code == 200
    assert client.delete("/items/new4").status_code == 204
    assert client.delete("/items/7").status_code == 204
    assert client.delete("/items/new0").status_code == 204
    put(client, "new0", "Come back as another")


def views_of(client: Client, item_id: str) -> dict[str, Any]:
    return dict(client.parts.store.snapshot.views(item_id) or {})


def test_after_the_flip_all_is_as_if_the_new_bundle_had_always_been_served(
    client: Client, bundles: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    put_some(client)
    for name, read in (("same", 0), ("other", 6)):
        before = answers(client, HISTORIES)

        status = upgraded(client, name)

        assert (status["state"], status["error"]) == ("flipped", None)
        assert (status["told"], status["left"], status["lost"]) == (18, 0, 0)
        assert client.get("/info").json()["bundle"] == hash_of(bundles / name)
        with in_this_process(bundles / name, tmp_path / name) as alone:
            put_some(alone)
            assert answers(client, HISTORIES) == answers(alone, HISTORIES) != before
        metrics = client.get("/metrics").text
        assert f'bundle="{hash_of(bundles / name)}"' in metrics
        assert hash_of(tiny_bundle) not in metrics
        # The LLM reads nothing that it, or the export, has read before.
        assert client.metric('llmemb_reindex_items_total{source="model"}') == read


def test_a_restart_serves_what_was_active(bundles: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        put_some(client)
        upgraded(client, "other")
        put(client, "later", "Put in the new bundle")
        before = answers(client, [*HISTORIES, ["later"]])
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        assert client.get("/info").json()["bundle"] == hash_of(bundles / "other")
        assert answers(client, [*HISTORIES, ["later"]]) == before


def test_an_index_that_is_kept_on_disk_is_of_the_bundle_that_is_served(
    bundles: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.upkeep.KEEP_FROM", 1)
    histories = [["1"], ["new0", "new3"]]
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        put_some(client)
        upgraded(client, "other")
        wait_for_generation(client, hash_of(bundles / "other"))
        change_some(client)
        other = answers(client, histories)
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        assert answers(client, histories) == other
        upgraded(client, rollback=True)
        wait_for_generation(client, hash_of(tiny_bundle))
        first = answers(client, histories)
        assert first != other
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        assert answers(client, histories) == first


def wait_for_generation(client: Client, bundle: str) -> None:
    """Wait until there is an index of a bundle on disk."""
    wait_until(lambda: any(bundle in each.read_text() for each in manifests(client)), 60)


def manifests(client: Client) -> list[Path]:
    catalogue: Path = client.app.state.serving.settings.catalogue_dir
    return list(catalogue.glob("index/[0-9]*/manifest.json"))


def test_every_answer_is_of_the_one_bundle_that_it_names(
    client: Client, bundles: Path, tiny_bundle: Path
) -> None:
    put_some(client)
    expected = {}
    seen: list[tuple[str, int, Ranked]] = []
    wrong: list[str] = []
    over = threading.Event()

    def asking() -> None:
        with Client(client.port) as mine:
            while not over.is_set():
                for at, history in enumerate(HISTORIES):
                    answer = mine.post("/recommend", json={"history": history, "k": 30})
                    if answer.status_code != 200:
                        wrong.append(answer.text)
                        continue
                    body = answer.json()
                    items = Ranked((each["item_id"], each["score"]) for each in body["items"])
                    seen.append((body["bundle"], at, items))

    expected[hash_of(tiny_bundle)] = answers(client, HISTORIES)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(asking) for _ in range(4)]
        flips = [upgraded(client, name) for name in ("other", "same")]
        flips.append(upgraded(client, rollback=True))
        over.set()
        for each in asked:
            each.result()
    expected[hash_of(bundles / "other")] = answers(client, HISTORIES)
    upgraded(client, "same")
    expected[hash_of(bundles / "same")] = answers(client, HISTORIES)

    assert [each["state"] for each in flips] == ["flipped"] * 3
    assert wrong == []
    assert {bundle for bundle, _, _ in seen} == set(expected)
    for bundle, at, items in seen:
        assert items == expected[bundle][at]


def test_what_is_written_while_it_is_made_ready_is_there_after_the_flip(
    client: Client, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_some(client)
    # Before the first round, while it is compared, and when all that is left is to flip.
    for step, doing in (("_count", put_some), ("_compared", change_some), ("_flip", None)):
        with stopped_at(Upgrade, step, monkeypatch) as (reached, go):
            ask(client, "other")
            assert reached.wait(WAIT_S)
            if doing:
                doing(client)
            else:
                put(client, "new5", "At the last moment")
                assert client.delete("/items/new9").status_code == 204
            if step != "_flip":
                client.post("/admin/bundles:cancel")
            go.set()
            status = ended(client)
        assert status["state"] == ("flipped" if step == "_flip" else "cancelled")

    with in_this_process(bundles / "other", tmp_path / "alone") as alone:
        put_some(alone)
        change_some(alone)
        put(alone, "new5", "At the last moment")
        alone.delete("/items/new9")
        histories = [["1"], ["new0", "new5"], ["new1", "new3", "2"]]
        assert answers(client, histories) == answers(alone, histories)
        assert client.get("/items?limit=100").json()["items"][0]["views"] == ["text", "id"]
        assert client.get("/health/ready").json() == alone.get("/health/ready").json()


def test_rollback_goes_back_with_all_that_was_written_since(
    client: Client, bundles: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    put_some(client)
    first = client.get("/info").json()["bundle"]
    vector = np.arange(8, dtype=np.float32).tolist()
    given = [{"item_id": "mine", "attributes": {"title": "x"}, "vectors": {"text": vector}}]
    client.post("/items:batch", json={"items": given, "bundle": first}).raise_for_status()

    status = upgraded(client, "other")

    assert status["given"] == 1  # its attributes made its vectors now
    assert not np.array_equal(views_of(client, "mine")["text"], vector)
    change_some(client)

    status = upgraded(client, rollback=True)

    assert (status["state"], status["comparison"]) == ("flipped", None)
    assert client.get("/info").json()["bundle"] == first
    assert views_of(client, "mine")["text"].tolist() == vector  # it was not written since
    client.delete("/items/mine")
    with in_this_process(tiny_bundle, tmp_path / "alone") as alone:
        put_some(alone)
        change_some(alone)
        assert answers(client, [["1"], ["new0", "new3"]]) == answers(
            alone, [["1"], ["new0", "new3"]]
        )
    again = upgraded(client, rollback=True)  # and forth
    assert again["bundle"] == hash_of(bundles / "other")


def test_a_write_that_was_embedded_before_the_flip_is_written_after_it_in_the_new_bundle(
    client: Client, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = client.get("/info").json()["bundle"]
    given = {"item_id": "given", "attributes": {"title": "x"}, "vectors": {"text": [1.0] * 8}}
    held = threading.Event()
    serving: Serving = client.app.state.serving
    requests: list[tuple[str, str, Any]] = [
        ("PUT", "/items/straddles", {"attributes": {"title": "Straddles"}}),
        ("PATCH", "/items/3", {"attributes": {"title": "Patched"}}),
        ("DELETE", "/items/4", None),
        ("POST", "/items:batch", {"items": [given], "bundle": old}),
    ]
    with stopped_at(Upgrade, "_flip", monkeypatch) as (reached, go), ThreadPoolExecutor(8) as pool:
        ask(client, "other")
        assert reached.wait(WAIT_S)
        client.parts.disk.submit(held.wait)  # all writes wait for the disk
        sent = [
            pool.submit(client.request, method, path, json=body) for method, path, body in requests
        ]
        # Each is embedded by now, by the bundle that is not served when it is written.
        wait_until(lambda: client.parts.disk._work_queue.qsize() == len(requests))
        go.set()
        wait_until_over(serving)
        held.set()
        answered = [each.result() for each in sent]

    assert serving.upgrade
    assert serving.upgrade.progress.state == "flipped"
    assert [each.status_code for each in answered] == [201, 200, 204, 409]
    assert "vectors of two bundles never meet" in answered[3].json()["detail"]
    bundle = Bundle.open(bundles / "other", dtype="float32")
    (views,) = bundle.item_views(
        ["straddles"],
        client.app.state.serving.parts.bundle.encode(
            [bundle.prompt(client.parts.store.items.get("straddles").item)]  # type: ignore[union-attr]
        ).vectors,
    )
    np.testing.assert_allclose(views_of(client, "straddles")["text"], views["text"], atol=1e-5)
    assert client.get("/items/4").status_code == 404
    assert client.get("/items/given").status_code == 404
    # And what a request of the old bundle says no more than reads.
    assert client.parts.bundle.bundle_hash == hash_of(bundles / "other")


def test_an_import_goes_on_through_a_flip(client: Client, bundles: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"item_id": f"i{n}", "attributes": {"title": f"Line {n}"}}).encode() + b"\n"
        for n in range(400)
    ]

    def slowly() -> Iterator[bytes]:
        yield b"".join(lines[:300])
        assert upgraded(client, "other")["state"] == "flipped"
        yield b"".join(lines[300:])

    with Client(client.port) as other:
        answer = other.post("/items:import?import_id=one", content=slowly(), headers=LINES)

    assert (answer.status_code, answer.json()["created"]) == (200, 400)
    with in_this_process(bundles / "other", tmp_path / "alone") as alone:
        alone.post("/items:import?import_id=one", content=b"".join(lines), headers=LINES)
        assert answers(client, [["i1", "i350"]]) == answers(alone, [["i1", "i350"]])


def test_an_import_of_vectors_of_the_old_bundle_ends_at_the_flip_with_409(client: Client) -> None:
    old = client.get("/info").json()["bundle"]
    lines = [
        json.dumps(
            {"item_id": f"i{n}", "attributes": {"title": "x"}, "vectors": {"text": [1.0] * 8}}
        ).encode()
        + b"\n"
        for n in range(300)
    ]

    def slowly() -> Iterator[bytes]:
        yield b"".join(lines[:256])
        upgraded(client, "other")
        yield b"".join(lines[256:])

    with Client(client.port) as other:
        answer = other.post(
            f"/items:import?import_id=one&bundle={old}", content=slowly(), headers=LINES
        )

    assert answer.status_code == 409, answer.text
    assert "vectors of two bundles never meet" in answer.json()["detail"]
    assert client.get("/imports/one").json()["durable_line"] == 256
    again = client.post(f"/items:import?import_id=one&bundle={old}", content=b"", headers=LINES)
    assert again.status_code == 409


def test_requests_for_a_bundle_that_is_not_active_are_a_409(client: Client, bundles: Path) -> None:
    active, another = client.get("/info").json()["bundle"], hash_of(bundles / "same")
    item = {"item_id": "x", "attributes": {"title": "X"}}
    requests = {
        "/search": {"view": "text", "vector": [1.0] * 8},
        "/recommend": {"history": ["1"]},
        "/items:batch": {"items": [item]},
    }
    for path, body in requests.items():
        assert client.post(path, json={**body, "bundle": active}).status_code == 200
        refused = client.post(path, json={**body, "bundle": another})
        assert refused.status_code == 409, path
        assert refused.json()["type"] == "urn:llmemb:bundle-mismatch"
        assert f"meant for bundle '{another[:12]}'" in refused.json()["detail"]
