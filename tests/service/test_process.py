"""`python -m service` as an operator meets it: start, kill, stop."""

import json
import random
import shutil
import signal
import subprocess
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx

from tests.service.running import Client, free_port, in_a_process, wait_until


def put_until_it_dies(client: Client, name: str, acknowledged: list[str]) -> None:
    for number in range(100_000):
        item_id = f"{name}-{number}"
        try:
            answer = client.put(f"/items/{item_id}", json={"attributes": {"title": item_id}})
        except httpx.TransportError:
            return
        assert answer.status_code == 201
        acknowledged.append(item_id)


def test_kills_lose_nothing_acknowledged_and_sigterm_ends_with_0(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    chance = random.Random(1)
    acknowledged: list[str] = []
    port = free_port()
    catalogue = tmp_path / "catalogue"
    with Client(port) as client:
        for life in range(2):
            with in_a_process(tiny_bundle, catalogue, port) as process:
                client.wait_until_ready(process)
                killer = threading.Timer(chance.uniform(0.3, 1.2), process.kill)
                killer.start()
                put_until_it_dies(client, f"life{life}", acknowledged)
                assert process.wait(10) == -signal.SIGKILL
                killer.join()

        with in_a_process(tiny_bundle, catalogue, port, LLMEMB_DRAIN_DELAY_S="1") as process:
            client.wait_until_ready(process)
            known = {item_id for item_id, _ in client.recommended(["1"], k=500)}
            missing = [i for i in acknowledged if client.get(f"/items/{i}").status_code != 200]
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            draining = client.get("/health/ready")
            live = client.get("/health/live")
            served = client.post("/recommend", json={"history": ["1"]})
            output, _ = process.communicate(timeout=20)

    assert len(acknowledged) > 2
    assert missing == []
    assert len(acknowledged) > 480 or set(acknowledged) <= known
    assert (draining.status_code, draining.json()["detail"]) == (503, "draining")
    assert int(draining.headers["retry-after"]) >= 1
    assert (live.status_code, served.status_code) == (200, 200)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_a_killed_import_goes_on_after_its_last_durable_line_until_all_is_there(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    chance = random.Random(2)
    port = free_port()
    catalogue = tmp_path / "catalogue"
    count = 1500
    content = b"".join(
        json.dumps({"item_id": f"i{n}", "attributes": {"title": f"{n} {'x' * 40}"}}).encode()
        + b"\n"
        for n in range(count)
    )
    query = {"import_id": "one"}
    headers = {"content-type": "application/x-ndjson"}
    seen = 0  # the last line that anybody was told to be durable
    finished = False
    with Client(port) as client, Client(port) as watcher:
        for life in range(3):
            with in_a_process(tiny_bundle, catalogue, port) as process:
                client.wait_until_ready(process)
                before = client.get("/imports/one").json().get("durable_line", 0)
                held = ids(client)
                assert before >= seen
                assert held == {f"i{n}" for n in range(before)}
                if life < 2:
                    killer = threading.Timer(chance.uniform(0.2, 0.8), process.kill)
                    killer.start()
                    seen = max(before, watch_import(client, watcher, content, process))
                    killer.join()
                    continue
                answer = client.post(
                    "/items:import", params=query, content=content, headers=headers, timeout=120
                )
                finished = answer.json()["state"] == "finished"
                known = ids(client)

    assert finished
    assert known == {f"i{n}" for n in range(count)}
    assert answer.json()["created"] == count


def ids(client: Client) -> set[str]:
    found: set[str] = set()
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/items", params={"limit": 1000, **cursor}).json()
        found |= {each["item_id"] for each in page["items"] if each["item_id"][0] == "i"}
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


def watch_import(
    client: Client, watcher: Client, content: bytes, process: "subprocess.Popen[str]"
) -> int:
    """Send an import to a service that is going to be killed; the last line told as durable."""

    def send() -> None:
        with suppress(httpx.TransportError):
            client.post(
                "/items:import?import_id=one",
                content=content,
                headers={"content-type": "application/x-ndjson"},
            )

    sender = threading.Thread(target=send)
    sender.start()
    told = 0
    while process.poll() is None:
        with suppress(httpx.TransportError):
            told = max(told, watcher.get("/imports/one").json().get("durable_line", 0))
    sender.join()
    return told


def test_killed_batches_are_whole_or_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    catalogue = tmp_path / "catalogue"
    acknowledged: list[int] = []

    def write(client: Client) -> None:
        for number in range(100_000):
            items = [
                {"item_id": f"i{number}-{part}", "attributes": {"title": f"{number} {part}"}}
                for part in range(10)
            ]
            try:
                answer = client.post("/items:batch", json={"items": items, "atomic": True})
            except httpx.TransportError:
                return
            assert answer.status_code == 200
            acknowledged.append(number)

    with Client(port) as client:
        with in_a_process(tiny_bundle, catalogue, port) as process:
            client.wait_until_ready(process)
            killer = threading.Timer(0.8, process.kill)
            killer.start()
            write(client)
            process.wait(10)
            killer.join()
        with in_a_process(tiny_bundle, catalogue, port) as process:
            client.wait_until_ready(process)
            batches = Counter(each.partition("-")[0] for each in ids(client))

    assert len(acknowledged) > 2
    assert set(batches.values()) == {10}
    assert {f"i{number}" for number in acknowledged} <= batches.keys()


def test_a_bad_bundle_stops_the_process_with_a_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with (bundle / "items.jsonl").open("a") as file:
        file.write("\n")

    with in_a_process(bundle, tmp_path / "catalogue", free_port()) as process:
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert output == f"{bundle}/items.jsonl is not what was exported: its SHA-256 differs\n"


def test_a_port_that_is_taken_stops_the_process_with_a_sentence(
    tiny_bundle: Path, tmp_path: Path, shared: Client
) -> None:
    with in_a_process(tiny_bundle, tmp_path / "catalogue", shared.port) as process:
        output, _ = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "Traceback" not in output
    assert f"cannot listen on 127.0.0.1:{shared.port}" in output
