"""How the process ends when it is told to, with requests in flight."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.service.half_sent import HISTORY, HalfSent
from tests.service.running import Client, free_port, in_a_process, wait_until


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_it_says_so_then_admits_nobody_then_finishes_what_is_in_flight(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()
    settings = {"LLMEMB_DRAIN_DELAY_S": "1", "LLMEMB_DRAIN_LIMIT_S": "20"}
    with in_a_process(tiny_bundle, tmp_path / "catalogue", port, **settings) as process:
        with Client(port) as client, HalfSentLater(client, process) as slow:
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            ready = client.get("/health/ready")
            served = client.post(
                "/recommend", content=HISTORY, headers={"content-type": "application/json"}
            )
            wait_until(lambda: refused(port))
            time.sleep(0.3)
            running = process.poll() is None
            status, answer = slow.finish()
        output, _ = process.communicate(timeout=20)

    assert (ready.status_code, ready.json()["detail"]) == (503, "draining")
    assert served.status_code == 200
    assert running
    assert (status, len(answer["items"])) == (200, 3)
    assert process.returncode == 0, output
    assert output == ""


def test_what_is_not_done_within_the_limit_is_answered_and_the_status_is_0(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()
    with in_a_process(
        tiny_bundle, tmp_path / "catalogue", port, LLMEMB_DRAIN_LIMIT_S="1"
    ) as process:
        with Client(port) as client, HalfSentLater(client, process) as slow:
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            status, problem = slow.answer()
        output, _ = process.communicate(timeout=20)
        took_s = time.monotonic() - started

    assert status == 503
    assert problem["type"] == "urn:llmemb:not-ready"
    assert process.returncode == 0, output
    assert 1 <= took_s < 10
    assert "Traceback" not in output


def test_a_forward_pass_that_runs_on_holds_nothing_up(tiny_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    body = {"items": [{"item_id": "x", "attributes": {"title": "slow"}}]}
    with (
        in_a_process(
            tiny_bundle,
            tmp_path / "catalogue",
            port,
            module="tests.service.slow",
            LLMEMB_DRAIN_LIMIT_S="1",
        ) as process,
        Client(port) as client,
        ThreadPoolExecutor() as pool,
    ):
        client.wait_until_ready(process)
        stuck = pool.submit(httpx.post, f"http://127.0.0.1:{port}/embed", json=body, timeout=60)
        wait_until(lambda: client.metric('llmemb_embed_stage_seconds_count{stage="queue"}') > 0)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        took_s = time.monotonic() - started

    assert stuck.result().status_code == 503
    assert int(stuck.result().headers["retry-after"]) >= 1
    assert process.returncode == 0, output
    assert took_s < 20
    assert "Traceback" not in output


class HalfSentLater(HalfSent):
    """A HalfSent for a process: once it is ready, and has the request."""

    def __init__(self, client: Client, process: object) -> None:
        client.wait_until_ready(process)  # type: ignore[arg-type]
        super().__init__(client.port)
        wait_until(lambda: client.metric("llmemb_inflight_requests") == 1)


def test_control_c_ends_an_idle_process_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        in_a_process(tiny_bundle, tmp_path / "catalogue", port) as process,
        Client(port) as client,  # whose connection stays open
    ):
        client.wait_until_ready(process)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)

    assert (process.returncode, output) == (0, "")
    assert time.monotonic() - started < 10
