"""`python -m service reindex` as an operator meets it, on services in processes of their own."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.service.running import (
    ROOT,
    Client,
    free_port,
    in_a_process,
    in_this_process,
    wait_until,
)
from tests.service.upgrading import Ranked, answers, ask, ended, hash_of, put

HISTORIES = [["1"], ["2", "5"], ["i3", "i5"]]
ITEMS, LIVES = 600, 2


def reindex(port: int, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service", "reindex", *arguments],
        cwd=ROOT,
        env={**os.environ, "LLMEMB_PORT": str(port), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def import_items(client: Client, count: int) -> None:
    lines = "".join(
        f'{{"item_id": "i{n}", "attributes": {{"title": "{n} {"x" * (n % 50)}"}}}}\n'
        for n in range(count)
    )
    answer = client.post(
        "/items:import?import_id=all",
        content=lines.encode(),
        headers={"content-type": "application/x-ndjson"},
        timeout=120,
    )
    assert answer.json()["created"] == count, answer.text


def test_the_command_tells_how_far_it_is_compares_and_goes_back(
    tiny_bundle: Path, bundles: Path, tmp_path: Path
) -> None:
    port = free_port()
    keys = tmp_path / "keys"
    keys.write_text("boss read,write secret-key\n")
    keys.chmod(0o600)
    env = {"LLMEMB_BUNDLES_DIR": str(bundles), "LLMEMB_API_KEYS_FILE": str(keys)}
    key = {"LLMEMB_API_KEY": "secret-key"}
    with (
        Client(port) as client,
        in_a_process(tiny_bundle, tmp_path / "catalogue", port, **env) as process,
    ):
        client.wait_until_ready(process)
        client.headers["authorization"] = "Bearer secret-key"
        put(client, "title only", "Lost to one of them")

        without = reindex(port, "--bundle", "other")
        unknown = reindex(port, "--bundle", "nowhere", **key)
        damaged = reindex(port, "--bundle", "damaged", **key)
        held = reindex(port, "--bundle", "narrow", "--hold", **key)
        ready = reindex(port, "--bundle", "other", "--hold", **key)
        done = reindex(port, "--bundle", "other", **key)
        active = client.get("/info").json()["bundle"]
        status = reindex(port, "--status", **key)
        back = reindex(port, "--rollback", "--url", f"http://127.0.0.1:{port}", **key)
        after = client.get("/info").json()["bundle"]
        cancelled = reindex(port, "--cancel", **key)
    away = reindex(port, "--status", **key)
    nonsense = reindex(port, "--bundle", "other", "--url", "127.0.0.1")

    for refused, reason in (
        (without, "send an API key"),
        (unknown, "LLMEMB_BUNDLES_DIR has no bundle 'nowhere'"),
        (damaged, "projection.safetensors is not what was exported"),
        (held, "it is ready, and was not to be made active"),
        (away, "does not answer"),
        (nonsense, "write http://HOST:PORT"),
    ):
        assert refused.returncode == 1, refused.stdout
        assert reason in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert "Traceback" not in refused.stderr
    assert "1 items are lost to this bundle: title only" in held.stdout
    assert (ready.returncode, done.returncode, status.returncode, back.returncode) == (0,) * 4
    assert "other: held, 13 of 13 items" in ready.stdout
    for told in ("of 25 recommended, the share that both recommend: ", "parity: 1.0", "hub_share"):
        assert told in done.stdout
    assert active == hash_of(bundles / "other")
    assert f"active: {active}" in done.stdout
    assert f"{active[:12]}  other                     active" in status.stdout
    assert f"active: {after}" in back.stdout
    assert after == hash_of(tiny_bundle)
    assert "asked to stop; it was flipped" in cancelled.stdout


def test_kills_in_the_middle_serve_the_old_bundle_and_it_goes_on_where_it_was(
    tiny_bundle: Path, bundles: Path, tmp_path: Path
) -> None:
    chance = random.Random(3)
    port = free_port()
    catalogue = tmp_path / "catalogue"
    env = {"LLMEMB_BUNDLES_DIR": str(bundles)}
    told = [0]
    with Client(port) as client:
        with in_a_process(tiny_bundle, catalogue, port, **env) as process:
            client.wait_until_ready(process)
            import_items(client, ITEMS)
            before = answers(client, HISTORIES)
        for life in range(LIVES):
            with in_a_process(tiny_bundle, catalogue, port, **env) as process:
                client.wait_until_ready(process)
                assert answers(client, HISTORIES) == before
                ask(client, "other")
                told.append(wait_until_embedding(client))
                wait_until_further(client, told[-1])
                put(client, f"life{life}", "Written meanwhile")
                before = answers(client, HISTORIES)
                killer = threading.Timer(chance.uniform(0.0, 0.4), process.kill)
                killer.start()
                assert process.wait(30) == -signal.SIGKILL
                killer.join()
        with in_a_process(tiny_bundle, catalogue, port, **env) as process:
            client.wait_until_ready(process)
            assert answers(client, HISTORIES) == before
            done = reindex(port, "--bundle", "other")
            told.append(int(client.metric('llmemb_reindex_items_total{source="model"}')))
            after = answers(client, HISTORIES)
            known = [client.get(f"/items/life{life}").status_code for life in range(LIVES)]

    assert done.returncode == 0, done.stdout + done.stderr
    assert told[:-1] == sorted(told[:-1])  # each began where the one before had been
    assert told[-1] < ITEMS
    assert known == [200] * LIVES
    assert after == alone(bundles / "other", tmp_path / "alone")


def wait_until_embedding(client: Client) -> int:
    """How many items the bundle had been told of when it was first seen at work."""
    deadline = time.monotonic() + 60
    while True:
        status = client.get("/admin/bundles").json()["upgrade"]
        assert status["state"] in {"loading", "embedding"}
        if status["state"] == "embedding" and status["told"] + status["left"]:
            told: int = status["told"]
            return told
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_further(client: Client, told: int) -> None:
    """So that a life that is killed has done something."""
    wait_until(lambda: client.get("/admin/bundles").json()["upgrade"]["told"] > told, 60)


def alone(bundle: Path, catalogue: Path) -> list[Ranked]:
    """What a service of its own answers, to which the same items were put."""
    with in_this_process(bundle, catalogue) as client:
        import_items(client, ITEMS)
        for life in range(LIVES):
            put(client, f"life{life}", "Written meanwhile")
        return answers(client, HISTORIES)


@pytest.mark.parametrize("step", ["commit", "swap"])
def test_a_kill_at_the_flip_leaves_the_one_or_the_other(
    tiny_bundle: Path, bundles: Path, tmp_path: Path, step: str
) -> None:
    port = free_port()
    catalogue = tmp_path / "catalogue"
    env = {"LLMEMB_BUNDLES_DIR": str(bundles), "KILL_AT": step}
    killed = "tests.service.killed"
    with Client(port) as client:
        with in_a_process(tiny_bundle, catalogue, port, killed, **env) as process:
            client.wait_until_ready(process)
            put(client, "new", "Before all")
            ask(client, "other")
            assert process.wait(60) == -signal.SIGKILL
        with in_a_process(tiny_bundle, catalogue, port, **env) as process:
            client.wait_until_ready(process)
            active = client.get("/info").json()["bundle"]
            found = client.recommended(["new"], k=5)
            flipped = ask(client, "other") and ended(client)

    # The commit is what counts, whether or not anybody has been answered since.
    assert active == hash_of(tiny_bundle if step == "commit" else bundles / "other")
    assert len(found) == 5
    assert flipped["state"] == "flipped"


def test_a_catalogue_whose_bundle_is_gone_says_where_to_put_it(
    tiny_bundle: Path, bundles: Path, tmp_path: Path
) -> None:
    port = free_port()
    catalogue = tmp_path / "catalogue"
    with (
        Client(port) as client,
        in_a_process(tiny_bundle, catalogue, port, LLMEMB_BUNDLES_DIR=str(bundles)) as process,
    ):
        client.wait_until_ready(process)
        assert reindex(port, "--bundle", "same").returncode == 0
    (tmp_path / "empty").mkdir()
    said = []
    for env in ({"LLMEMB_BUNDLES_DIR": str(tmp_path / "empty")}, {}):
        with in_a_process(tiny_bundle, catalogue, port, **env) as process:
            said.append(process.communicate(timeout=60)[0])
            assert process.returncode == 1
    with Client(port) as client, in_a_process(bundles / "same", catalogue, port) as process:
        client.wait_until_ready(process)  # LLMEMB_BUNDLE may name it as well

    active, first = hash_of(bundles / "same")[:12], hash_of(tiny_bundle)[:12]
    for each in said:
        assert f"belongs to bundle {active}…" in each
        assert f"is {first}…" in each
        assert "Traceback" not in each
    assert f"no folder of LLMEMB_BUNDLES_DIR ({tmp_path / 'empty'}) holds it" in said[0]
    assert "LLMEMB_BUNDLES_DIR is not set" in said[1]
