"""An attempt to have another bundle active: refused, held, cancelled, failed, or done."""

import gc
import sqlite3
import weakref
from pathlib import Path
from typing import Any

import pytest

from service.comparison import Bundled, compare
from service.errors import StorageFull
from service.schema import FILE
from service.upgrade import Upgrade
from tests.service.conftest import Serve
from tests.service.running import Client, in_this_process, wait_until
from tests.service.upgrading import (
    HISTORIES,
    WAIT_S,
    answers,
    ask,
    ended,
    put,
    put_some,
    stopped_at,
    upgraded,
)


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
    client = serve(bundles_dir=bundles, request_timeout_s=2.0)
    old = weakref.ref(client.parts.bundle)
    upgraded(client, "same")

    def gone() -> bool:
        gc.collect()
        return old() is None

    wait_until(gone)

    assert client.embed({"item_id": "x", "attributes": {"title": "X"}})["results"]
    assert client.get("/health/live").status_code == 200
