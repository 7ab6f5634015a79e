"""Another bundle in the place of the one that is served, in this process."""

import gc
import json
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from service.comparison import Bundled, compare
from service.errors import StorageFull
from service.schema import FILE
from service.serving import Serving
from service.upgrade import Upgrade
from tests.service.conftest import Serve
from tests.service.running import Client, in_this_process
from tests.service.upgrading import (
    WAIT_S,
    Ranked,
    answers,
    ask,
    ended,
    hash_of,
    put,
    stopped_at,
    upgraded,
    wait_until_over,
    write_bundles,
)

HISTORIES = [["1"], ["2", "5"], ["new0", "3"], ["new1", "new2", "new4"]]
LINES = {"content-type": "application/x-ndjson"}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    return write_bundles(tmp_path_factory.mktemp("upgrades") / "bundles", tiny_llm)


@pytest.fixture
def client(serve: Serve, bundles: Path) -> Client:
    return serve(bundles_dir=bundles)


def put_some(client: Client, count: int = 6) -> None:
    for number in range(count):
        put(client, f"new{number}", f"A new film {number * number}", genres=["Drama"])


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
    deadline = time.monotonic() + 60
    while not any(bundle in each.read_text() for each in manifests(client)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
        time.sleep(0.5)
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


@pytest.mark.parametrize(
    "name", ["../bundles/same", "..", ".", "/etc", "same/", "a\\b", "", "same\n", "x" * 129, "é"]
)
def test_a_path_is_no_name(client: Client, name: str) -> None:
    refused = client.post("/admin/bundles", json={"bundle": name})

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "bundle"


def test_what_cannot_be_asked_for_is_told(client: Client, serve: Serve) -> None:
    def told(asked: Client, body: dict[str, object]) -> tuple[int, str]:
        answer = asked.post("/admin/bundles", json=body)
        return answer.status_code, answer.json()["detail"]

    status, detail = told(client, {"bundle": "nowhere"})
    assert (status, "there are: damaged, narrow, other, same" in detail) == (404, True)
    status, detail = told(client, {"rollback": True})
    assert (status, "there is no bundle to go back to" in detail) == (404, True)
    assert client.post("/admin/bundles:cancel").status_code == 404
    for body in ({}, {"bundle": "same", "rollback": True}, {"bundle": "same", "more": 1}):
        assert told(client, body)[0] == 422
    status, detail = told(serve("another"), {"bundle": "same"})
    assert (status, "set LLMEMB_BUNDLES_DIR" in detail) == (404, True)


def test_only_a_key_with_write_may_change_the_bundle(
    serve: Serve, bundles: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("shop read reader-key\nboss read,write writer-key\n")
    keys.chmod(0o600)
    client = serve(bundles_dir=bundles, api_keys_file=keys)
    reader, writer = ({"authorization": f"Bearer {each}-key"} for each in ("reader", "writer"))

    assert client.get("/admin/bundles").status_code == 401
    assert client.get("/admin/bundles", headers=reader).status_code == 200
    for path in ("/admin/bundles", "/admin/bundles:cancel"):
        assert client.post(path, json={"bundle": "same"}, headers=reader).status_code == 403
    asked = client.post("/admin/bundles", json={"bundle": "same"}, headers=writer)
    assert asked.status_code == 202


def test_a_damaged_bundle_is_refused_and_what_is_served_goes_on(client: Client) -> None:
    before = client.get("/info").json()["bundle"], answers(client, [["1"]])

    status = upgraded(client, "damaged")

    assert status["state"] == "failed"
    assert "projection.safetensors is not what was exported" in status["error"]
    assert (client.get("/info").json()["bundle"], answers(client, [["1"]])) == before
    assert client.get("/health/ready").status_code == 200
    assert upgraded(client, "same")["state"] == "flipped"  # it keeps nobody out


def test_a_full_disk_stops_it_and_it_goes_on_when_there_is_room(client: Client) -> None:
    put_some(client, 100)
    before = answers(client, HISTORIES)
    with client.parts.store.locked() as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count={pages}")

    status = upgraded(client, "other")

    assert (status["state"], "disk" in status["error"]) == ("failed", True)
    assert answers(client, HISTORIES) == before
    with client.parts.store.locked() as database:
        database.execute("PRAGMA max_page_count=4294967294")
    assert upgraded(client, "other")["state"] == "flipped"


def test_a_disk_that_is_full_at_the_flip_leaves_all_as_it_was(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("the disk of the catalogue is full; nothing was changed")

    before = answers(client, [["1"]])
    with monkeypatch.context() as patch:
        patch.setattr("service.beside.activate", full)
        assert upgraded(client, "same")["state"] == "failed"

    assert answers(client, [["1"]]) == before
    put(client, "new", "Writes go on")
    assert upgraded(client, "same")["state"] == "flipped"


def test_items_of_which_the_bundle_can_make_nothing_are_told_and_stay_in_the_catalogue(
    bundles: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        put(client, "title only", "No attribute that the new bundle reads")
        before = client.get("/info").json()["bundle"]

        held = upgraded(client, "narrow")

        assert (held["state"], held["lost"], held["lost_ids"]) == ("held", 1, ["title only"])
        assert "can make no vector of 1 items" in held["error"]
        assert client.get("/info").json()["bundle"] == before

        status = upgraded(client, "narrow", accept_lost=True)

        assert (status["state"], status["lost"]) == ("flipped", 1)
    for _ in range(2):
        with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
            item = client.get("/items/title%20only").json()
            assert (item["views"], item["hidden"]) == ([], False)
            recommended = [item_id for item_id, _ in client.recommended(["1"], k=50)]
            assert (len(recommended), "title only" in recommended) == (11, False)
            client.patch("/items/title%20only", json={"hidden": False})
    with in_this_process(tiny_bundle, tmp_path, bundles_dir=bundles) as client:
        assert upgraded(client, rollback=True)["state"] == "flipped"
        assert "title only" in [item_id for item_id, _ in client.recommended(["1"], k=50)]


def test_one_that_is_held_is_compared_and_flips_when_asked_again(client: Client) -> None:
    put_some(client)

    held = upgraded(client, "same", flip=False)

    assert held["state"] == "held"
    told = held["comparison"]
    assert (told["items"], told["histories"], told["k"]) == (18, 18, 25)
    assert told["overlap"] == 1.0  # all but the history, of so few items
    assert 0 < told["neighbours_overlap"] < 1
    assert told["score_drift"] > 0
    assert told["parity"] > 0.999
    for side in (told["served"], told["other"]):
        assert set(side["lengths"]) == {"text", "id"}
        # 10 of 17 others each: 180 places, and of 18 items the one that has the most of them.
        assert 10 / 180 <= side["hub_share"] <= 17 / 180
    assert upgraded(client, "same")["state"] == "flipped"
    assert upgraded(client, "same")["state"] == "flipped"  # nothing is left to do


def test_a_bundle_compared_with_itself_drifts_nowhere(shared: Client) -> None:
    client = shared
    snapshot = client.parts.store.snapshot
    mine = Bundled(snapshot, "text", lambda history, k: client.recommended(list(history), k=k))

    told = compare([str(n) for n in range(12)], mine, mine, 1.0)

    assert (told.overlap, told.neighbours_overlap, told.score_drift) == (1.0, 1.0, 0.0)
    assert told.served == told.other


def test_a_second_one_waits_its_turn_and_a_cancelled_one_goes_on_where_it_was(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_some(client, 100)
    with stopped_at(Upgrade, "_look_for_lost", monkeypatch) as (reached, go):
        ask(client, "other")
        assert reached.wait(WAIT_S)
        assert ask(client, "other")["state"] in {"indexing", "embedding"}  # the same one
        refused = client.post("/admin/bundles", json={"bundle": "same"})
        client.post("/admin/bundles:cancel").raise_for_status()
        go.set()
        assert ended(client)["state"] == "cancelled"
    read = client.metric('llmemb_reindex_items_total{source="model"}')

    status = upgraded(client, "other")

    assert refused.status_code == 409
    assert "'other' is being made ready" in refused.json()["detail"]
    assert status["state"] == "flipped"
    assert client.metric('llmemb_reindex_items_total{source="model"}') == read == 100
    assert client.metric("llmemb_reindex_left_items") == 0


def test_a_third_bundle_takes_the_room_of_the_first(client: Client, tmp_path: Path) -> None:
    put(client, "title only", "Lost to one of them")
    for name in ("same", "other"):
        upgraded(client, name)
    # One that comes to nothing does not cost the way back.
    assert upgraded(client, "narrow")["state"] == "held"
    assert "same" in [each["name"] for each in roles(client, "previous")]

    upgraded(client, "narrow", accept_lost=True)

    database = sqlite3.connect(tmp_path / "catalogue" / FILE)
    kept = {number for (number,) in database.execute("SELECT bundle FROM bundles")}
    rows = database.execute("SELECT DISTINCT bundle FROM item_vectors").fetchall()
    encoders = database.execute("SELECT DISTINCT encoder FROM llm_vectors").fetchall()
    told = {number for (number,) in database.execute("SELECT encoder FROM bundles")}
    database.close()
    assert len(kept) == 2  # the active one and the one before
    assert {number for (number,) in rows} == kept
    assert {number for (number,) in encoders} == told
    known = {each["name"]: each for each in client.get("/admin/bundles").json()["bundles"]}
    assert (known["narrow"]["active"], known["other"]["previous"]) == (True, True)
    assert upgraded(client, rollback=True)["name"] == "other"


def roles(client: Client, role: str) -> list[dict[str, Any]]:
    """The bundles of which something holds."""
    return [each for each in client.get("/admin/bundles").json()["bundles"] if each[role]]


def test_serving_comes_first_but_not_for_ever(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_some(client)
    monkeypatch.setattr(type(client.parts.batcher), "idle", property(lambda _: False))

    status = upgraded(client, "other")  # while the LLM is never free

    assert status["state"] == "flipped"


def test_what_was_served_is_let_go_once_no_request_can_have_it(
    serve: Serve, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.serving.GRACE_S", 0.0)
    client = serve(bundles_dir=bundles, request_timeout_s=0.5)
    old = weakref.ref(client.parts.bundle)
    upgraded(client, "same")

    deadline = time.monotonic() + 20
    while old():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        gc.collect()

    assert client.embed({"item_id": "x", "attributes": {"title": "X"}})["results"]
    assert client.get("/health/live").status_code == 200
