"""The client of examples/ against the real service."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from examples.client import Busy, Client, Invalid, NewItem, NotFound, PreconditionFailed, Problem
from tests.service.running import Client as Running
from tests.service.running import free_port, in_this_process, wait_until


def client(port: int, key: str | None = None, patience_s: float = 20.0) -> Client:
    """One that no proxy of this machine stands before."""
    http = httpx.Client(timeout=35, trust_env=False)
    return Client(f"http://127.0.0.1:{port}", key, patience_s, http)


@pytest.fixture
def running(tiny_bundle: Path, tmp_path: Path) -> Iterator[Running]:
    with in_this_process(tiny_bundle, tmp_path / "catalogue") as running:
        yield running


@pytest.fixture
def service(running: Running) -> Iterator[Client]:
    with client(running.port) as service:
        yield service


@pytest.mark.parametrize("item_id", ["new", "a/b", "..", ".", "a b?c=d#e", "100%", "ü/neighbours"])
def test_an_item_lives_from_put_to_delete_whatever_its_id(service: Client, item_id: str) -> None:
    with pytest.raises(NotFound, match="the catalogue has no item"):
        service.get(item_id)

    put = service.put(item_id, {"title": "Heat", "year": 1995, "genres": ["Crime"]})
    patched = service.patch(item_id, {"year": None, "seen": True}, hidden=True)

    assert put["version"] < patched["version"]
    assert patched["attributes"] == {"title": "Heat", "genres": ["Crime"], "seen": True}
    assert service.get(item_id) == patched
    assert patched["hidden"] is True
    service.delete(item_id)
    with pytest.raises(NotFound):
        service.delete(item_id)


def test_a_version_keeps_what_somebody_else_wrote(service: Client) -> None:
    first = service.put("a", {"title": "One"}, if_version=0)
    service.put("a", {"title": "Two"}, if_version=first["version"])

    with pytest.raises(PreconditionFailed) as caught:
        service.put("a", {"title": "Three"}, if_version=first["version"])
    with pytest.raises(PreconditionFailed):
        service.put("a", {"title": "Three"}, if_version=0)
    with pytest.raises(PreconditionFailed):
        service.delete("a", if_version=first["version"])

    assert caught.value.status == 412
    assert service.get("a")["attributes"] == {"title": "Two"}


def test_recommendations_come_best_first_with_what_more_was_asked_for(service: Client) -> None:
    answer = service.recommend(["1", "2", "unknown"], k=4, exclude=["3"], explain="history")

    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4
    assert answer["unknown_history"] == ["unknown"]
    assert not {"1", "2", "3"} & {item["item_id"] for item in answer["items"]}
    assert {item["because"] for item in answer["items"]} <= {"1", "2"}
    with pytest.raises(NotFound):
        service.recommend(["unknown"])


def test_a_history_may_hold_items_by_their_words_and_vectors_and_answers_may_be_filtered(
    service: Client,
) -> None:
    film: NewItem = {"item_id": "new", "attributes": {"title": "Film number 2"}}
    (embedded,) = service.embed([film])
    comedies = {"attribute": "genres", "eq": "Comedy"}  # 1, 5 and 9, and 4, 6 and 7

    answer = service.recommend(
        ["1", {"attributes": film["attributes"]}, {"vectors": embedded["vectors"]}],
        filter=comedies,
        strategy="best",
        diversity=0.5,
        explore=1.0,
        seed=3,
        bundle=service.info()["bundle"],
    )

    assert answer["strategy"] == "best"
    assert {item["item_id"] for item in answer["items"]} == {"4", "5", "6", "7", "9"}
    assert {item["popularity"] for item in answer["items"]} <= {"head", "tail", "cold"}
    assert service.recommend(["1"], strategy="popular")["strategy"] == "popular"
    vector = embedded["vectors"]["text"]
    for found in (
        service.search("text", vector, filter=comedies),
        service.neighbours("1", view="text", filter=comedies),
    ):
        ids = {item["item_id"] for item in found["items"]}
        assert ids - {"1"} == {"4", "5", "6", "7", "9"}


def test_items_are_looked_up_together_and_drawn(service: Client) -> None:
    found = service.lookup(["3", "none", "1", "3"])
    drawn = service.map("title")
    some = service.map(limit=4)

    assert [item["item_id"] for item in found["items"]] == ["3", "1"]
    assert found["unknown"] == ["none"]
    titles = dict(zip(drawn["ids"], drawn["values"], strict=True))
    assert titles["3"] == found["items"][0]["attributes"]["title"]
    assert (some["total"], len(some["ids"]), len(some["x"])) == (12, 4, 4)
    assert "values" not in some


def test_a_vector_of_embed_finds_its_item_by_search(service: Client) -> None:
    film: NewItem = {"item_id": "new", "attributes": {"title": "A film"}}
    (embedded,) = service.embed([film], view="text", index=True)
    vector = embedded["vectors"]["text"]

    found = {
        each["item_id"]: each["score"] for each in service.search("text", vector, 500)["items"]
    }

    np.testing.assert_allclose(found["new"], np.dot(vector, vector), rtol=1e-5)
    near = service.neighbours("new", k=3, view="text")["items"]
    assert [found[each["item_id"]] for each in near] == [
        pytest.approx(each["score"], rel=1e-5) for each in near
    ]


def test_a_batch_has_a_result_for_each_item_or_is_refused_whole(service: Client) -> None:
    good: NewItem = {"item_id": "good", "attributes": {"title": "Good"}}
    bad: NewItem = {"item_id": "bad", "attributes": {}}

    with pytest.raises(Invalid) as caught:
        service.batch([good, bad], atomic=True)
    answer = service.batch([good, bad])

    assert [each["field"] for each in caught.value.errors] == ["items[1].attributes"]
    assert [each["status"] for each in answer["results"]] == [201, 422]
    assert answer["failed"] == 1
    assert service.get("good")["attributes"] == {"title": "Good"}


def test_pages_of_the_catalogue_are_one_iteration(service: Client) -> None:
    ids = [item["item_id"] for item in service.items(page=5)]

    assert sorted(ids, key=int) == [str(number) for number in range(12)]
    assert [item["item_id"] for item in service.items(q="film number 7")] == ["7"]


def test_what_is_exported_can_be_imported_and_a_wrong_line_is_told(
    service: Client, tmp_path: Path
) -> None:
    file = tmp_path / "items.jsonl"
    lines = [json.dumps({"item_id": f"n{n}", "attributes": {"title": f"N {n}"}}) for n in range(5)]
    file.write_text("\n".join([*lines[:3], "{}", *lines[3:]]))

    with pytest.raises(Invalid, match="line 4"):
        service.import_file(file, "spring")
    assert service.import_status("spring")["durable_line"] == 3
    file.write_text("\n".join(lines))
    status = service.import_file(file, "spring")

    assert (status["state"], status["durable_line"], status["created"]) == ("finished", 5, 5)
    exported = list(service.export())
    assert len(exported) == 12 + 5
    file.write_text("".join(json.dumps(item) + "\n" for item in exported))
    assert service.import_file(file, "again")["unchanged"] == 17
    with pytest.raises(NotFound):
        service.import_status("never")


def test_a_problem_says_what_where_and_by_which_name_the_log_knows_it(service: Client) -> None:
    with pytest.raises(Invalid) as caught:
        service.recommend(["1"], k=0)

    problem = caught.value
    assert (problem.status, problem.type) == (422, "urn:llmemb:invalid")
    assert problem.errors[0]["field"] == "k"
    assert len(problem.request_id) == 32
    assert problem.request_id in str(problem)
    assert problem.retry_after_s is None


def test_a_key_is_sent(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"shop read {'k' * 40}\n")
    keys.chmod(0o600)
    with in_this_process(tiny_bundle, tmp_path / "catalogue", api_keys_file=keys) as running:
        with client(running.port, "k" * 40) as service:
            assert service.recommend(["1"])["items"]
            with pytest.raises(Problem, match="403 "):
                service.put("a", {"title": "A"})
        with client(running.port) as stranger, pytest.raises(Problem, match="401 "):
            stranger.info()


def test_who_is_refused_comes_again_after_retry_after(tiny_bundle: Path, tmp_path: Path) -> None:
    with in_this_process(tiny_bundle, tmp_path / "catalogue", max_requests=1) as running:
        released = threading.Event()

        def hold() -> None:
            def body() -> Iterator[bytes]:
                yield b"\n"
                released.wait(20)

            running.post(
                "/items:import?import_id=held",
                content=body(),
                headers={"content-type": "application/x-ndjson"},
            )

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            wait_until(lambda: running.metric("llmemb_inflight_requests") == 1)
            with client(running.port, patience_s=0.1) as hasty, pytest.raises(Busy) as caught:
                hasty.recommend(["1"])
            assert (caught.value.status, caught.value.type) == (429, "urn:llmemb:overloaded")
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s >= 1
            with client(running.port) as patient, ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(patient.recommend, ["1"])
                time.sleep(0.3)
                assert not waiting.done()
                released.set()
                assert waiting.result(20)["items"]
        finally:
            released.set()
            holder.join()


def test_who_cannot_be_reached_is_said_when_the_patience_is_over() -> None:
    with client(free_port(), patience_s=0.5) as service, pytest.raises(httpx.ConnectError):
        service.info()


@contextmanager
def breaking_once(port: int, target: int, after_bytes: int) -> Iterator[None]:
    """A port that leads to another; the first connection that sends so much is cut."""
    cut = threading.Event()

    def forward(source: socket.socket, sink: socket.socket, counting: bool) -> None:
        passed = 0
        with suppress(OSError):
            while piece := source.recv(4096):
                passed += len(piece)
                if counting and passed > after_bytes and not cut.is_set():
                    cut.set()
                    break
                sink.sendall(piece)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                incoming, _ = listener.accept()
                outgoing = socket.create_connection(("127.0.0.1", target))
                for pair in ((incoming, outgoing, True), (outgoing, incoming, False)):
                    threading.Thread(target=forward, args=pair, daemon=True).start()
                held.extend([incoming, outgoing])

    held: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", port))
    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
        assert cut.is_set()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
        for each in (listener, *held):
            each.close()


def test_an_import_waits_for_the_service_and_outlives_a_broken_connection(
    running: Running, tmp_path: Path
) -> None:
    count = 1000
    file = tmp_path / "items.jsonl"
    lines = [{"item_id": f"n{n}", "attributes": {"title": f"{n} {'x' * 40}"}} for n in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    port = free_port()
    with client(port) as service, ThreadPoolExecutor(1) as pool:
        importing = pool.submit(service.import_file, file, "one")
        time.sleep(0.3)  # nobody listens there yet
        assert not importing.done()
        with breaking_once(port, running.port, after_bytes=file.stat().st_size // 2):
            status = importing.result(60)

    assert (status["state"], status["durable_line"]) == ("finished", count)
    assert status["created"] == count
