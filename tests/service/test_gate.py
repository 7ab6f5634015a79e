"""What comes in while too much is in flight, and until when an answer may take."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from service.admission import Admission
from service.errors import NotReady, Overloaded
from tests.service.conftest import Serve
from tests.service.half_sent import HISTORY, HalfSent, wait_until_in_flight
from tests.service.running import Client

JSON = {"content-type": "application/json"}


def posted(connection: http.client.HTTPConnection, body: bytes = HISTORY) -> tuple[int, bytes]:
    connection.request("POST", "/recommend", body, JSON)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_more_requests_than_may_be_in_flight_are_refused_and_the_others_answered(
    serve: Serve,
) -> None:
    client = serve(max_requests=2)

    with HalfSent(client.port) as first, HalfSent(client.port) as second:
        wait_until_in_flight(client, requests=2)
        refused = client.post("/recommend", content=HISTORY, headers=JSON)
        answered = [first.finish()[0], second.finish()[0]]

    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:llmemb:overloaded"
    assert refused.json()["detail"].startswith("2 requests are in flight")
    assert int(refused.headers["retry-after"]) >= 1
    assert answered == [200, 200]
    assert client.metric('llmemb_rejected_total{reason="requests"}') == 1
    assert client.metric('llmemb_rejected_total{reason="queue_full"}') == 0
    assert client.post("/recommend", content=HISTORY, headers=JSON).status_code == 200


def test_probes_metrics_and_documentation_are_answered_when_it_is_full(serve: Serve) -> None:
    client = serve(max_requests=1)

    with HalfSent(client.port):
        wait_until_in_flight(client, requests=1)
        statuses = {
            path: client.get(path).status_code
            for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json")
        }

    assert set(statuses.values()) == {200}, statuses


def test_a_connection_survives_a_refusal_of_a_small_body(serve: Serve) -> None:
    client = serve(max_requests=1)
    connection = http.client.HTTPConnection("127.0.0.1", client.port)

    with HalfSent(client.port) as other:
        wait_until_in_flight(client, requests=1)
        refused, _ = posted(connection, HISTORY + b" " * 50_000)
        opened = connection.sock
        other.finish()
        wait_until_in_flight(client)
        answered, _ = posted(connection)

    assert (refused, answered) == (429, 200)
    assert connection.sock is opened
    connection.close()


def test_a_refused_body_that_is_large_is_not_read(serve: Serve) -> None:
    client = serve(max_requests=1)

    with HalfSent(client.port), HalfSent(client.port, filler=1_000_000) as large:
        status, _ = large.answer()  # before its end was sent
        with suppress(ConnectionResetError):  # which is how closing ends with bytes unread
            assert large.socket.recv(1) == b""

    assert status == 429


def test_a_client_reads_its_refusal_while_it_still_sends(serve: Serve) -> None:
    client = serve(max_body_bytes=2000)

    answers = [
        client.post("/recommend", content=b" " * size, headers=JSON).status_code
        for size in (3_000_000, 5_000_000) * 10
    ]

    assert answers == [413] * 20


def test_a_small_body_in_chunks_does_not_cost_the_connection(serve: Serve) -> None:
    client = serve(max_requests=1)
    connection = http.client.HTTPConnection("127.0.0.1", client.port)

    with HalfSent(client.port):
        wait_until_in_flight(client, requests=1)
        connection.request("POST", "/recommend", iter([HISTORY, b" "]), JSON)
        refused = connection.getresponse()
        refused.read()
        opened = connection.sock
        connection.request("GET", "/health/live")
        answered = connection.getresponse()
        answered.read()

    assert (refused.status, answered.status) == (429, 200)
    assert connection.sock is opened
    connection.close()


def test_a_refused_client_that_waits_for_continue_is_told_at_once(serve: Serve) -> None:
    client = serve(max_requests=1)

    with HalfSent(client.port):
        wait_until_in_flight(client, requests=1)
        refused = client.post(
            "/recommend", content=HISTORY, headers={**JSON, "expect": "100-continue"}
        )

    assert refused.status_code == 429
    assert refused.headers["connection"] == "close"


def test_a_declared_length_counts_before_its_bytes_come(serve: Serve) -> None:
    client = serve(max_body_bytes=4000, max_inflight_bytes=5000)
    body = HISTORY + b" " * 2000

    with HalfSent(client.port, filler=3000) as first:
        wait_until_in_flight(client, requests=1)
        refused = client.post("/recommend", content=body, headers=JSON)
        answered, _ = first.finish()

    assert refused.status_code == 429
    assert "bytes are in flight" in refused.json()["detail"]
    assert answered == 200
    assert client.metric('llmemb_rejected_total{reason="bytes"}') == 1
    assert client.post("/recommend", content=body, headers=JSON).status_code == 200


def test_a_body_of_unknown_length_counts_as_it_comes(serve: Serve) -> None:
    client = serve(max_body_bytes=4000, max_inflight_bytes=5000)

    def chunks() -> Iterator[bytes]:
        yield HISTORY
        yield b" " * 2000

    with HalfSent(client.port, declared=False, filler=3000) as first:
        wait_until_in_flight(client, requests=1, least_bytes=3000)
        refused = client.post("/recommend", content=chunks(), headers=JSON)
        answered, _ = first.finish()
    wait_until_in_flight(client)
    later = client.post("/recommend", content=chunks(), headers=JSON)

    assert (refused.status_code, answered, later.status_code) == (429, 200, 200)
    wait_until_in_flight(client)
    assert client.app.state.admission.bytes == 0


def test_clients_that_leave_give_their_room_back(serve: Serve) -> None:
    client = serve(max_requests=3)

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(HalfSent(client.port, filler=2000))
        wait_until_in_flight(client, requests=3)
    wait_until_in_flight(client)

    assert client.app.state.admission.bytes == 0
    assert client.post("/recommend", content=HISTORY, headers=JSON).status_code == 200


def test_a_storm_of_refusals_leaves_nothing_behind(serve: Serve) -> None:
    client = serve(max_requests=1)
    statuses: list[int] = []

    def storm() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        statuses.extend(posted(connection)[0] for _ in range(50))
        connection.close()

    with HalfSent(client.port) as first:
        wait_until_in_flight(client, requests=1)
        threads = [threading.Thread(target=storm) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answered, _ = first.finish()

    assert statuses == [429] * 200
    assert answered == 200
    wait_until_in_flight(client)
    assert client.app.state.admission.bytes == 0


def test_retry_after_is_what_the_estimate_says() -> None:
    admission = Admission(max_requests=1, max_bytes=100, retry_after_s=lambda: 7.2)
    admission.enter(0)

    with pytest.raises(Overloaded, match="in about 8 s") as refused:
        admission.enter(0)

    assert refused.value.retry_after_s == 7.2


def test_nobody_comes_in_once_it_is_closed() -> None:
    admission = Admission(max_requests=1, max_bytes=100, retry_after_s=lambda: 1)
    admission.close()

    with pytest.raises(NotReady, match="draining"):
        admission.enter(0)


def test_a_client_may_ask_for_an_earlier_deadline(serve: Serve) -> None:
    client = serve()
    started = time.perf_counter()

    with HalfSent(client.port, header="X-Request-Timeout-Ms: 200") as slow:
        status, problem = slow.answer()

    assert status == 504
    assert problem["type"] == "urn:llmemb:too-late"
    assert problem["detail"] == "no answer within 0.2 s"
    assert time.perf_counter() - started < 5
    assert client.metric('llmemb_rejected_total{reason="deadline"}') == 1


def test_a_client_cannot_ask_for_a_later_deadline(serve: Serve) -> None:
    client = serve(request_timeout_s=0.2)

    with HalfSent(client.port, header="X-Request-Timeout-Ms: 99999999999999999999") as slow:
        status, problem = slow.answer()

    assert (status, problem["detail"]) == (504, "no answer within 0.2 s")


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "1e3", "soon", "", "00", "²", "9" * 50 + "x"])
def test_a_deadline_that_is_no_number_is_a_400_that_shows_it(shared: Client, value: str) -> None:
    answer = shared.post(
        "/recommend", content=HISTORY, headers={**JSON, "x-request-timeout-ms": value.encode()}
    )

    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:llmemb:malformed"
    assert "X-Request-Timeout-Ms is " in answer.json()["detail"]
    assert json.dumps(answer.json()["detail"]).count("9") <= 40


@pytest.mark.parametrize("value", ["30000", "0005000"])
def test_a_deadline_that_is_met_changes_nothing(shared: Client, value: str) -> None:
    answer = shared.post(
        "/recommend", content=HISTORY, headers={**JSON, "x-request-timeout-ms": value}
    )

    assert answer.status_code == 200
