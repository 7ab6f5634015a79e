"""`python -m service` as an operator meets it: start, kill, stop."""

import random
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx

from tests.service.running import Client, free_port, in_a_process


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

        with in_a_process(tiny_bundle, catalogue, port, LLMEMB_DRAIN_DELAY_S="0.7") as process:
            client.wait_until_ready(process)
            known = {item_id for item_id, _ in client.recommended(["1"], k=500)}
            missing = [i for i in acknowledged if client.get(f"/items/{i}").status_code != 200]
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
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
