"""How work that nobody waits for keeps out of the way of those who ask meanwhile."""

import sys
import threading
import time

import pytest

from service.admission import Admission
from service.pace import SWITCH_S, USUAL_SWITCH_S, Pace, yielding
from service.upgrade import Upgrade
from tests.service.conftest import Serve
from tests.service.running import Client, wait_until
from tests.service.upgrading import WAIT_S, ask, ended, put, put_some, stopped_at

WORK_S = 0.2


def rested_s(pace: Pace) -> float:
    """How long it rested after some work."""
    time.sleep(WORK_S)
    started = time.monotonic()
    pace.let_others_first()
    return time.monotonic() - started


def test_while_somebody_is_answered_it_rests_as_long_as_it_worked() -> None:
    pace = Pace(lambda: True, lambda: False, lambda: None)

    assert rested_s(pace) >= WORK_S
    assert rested_s(pace) >= WORK_S  # and not as long as it rested and worked


def test_it_waits_for_a_moment_without_a_request_but_not_for_ever() -> None:
    in_flight = iter([True, True, False])
    gap = Pace(lambda: False, lambda: False, lambda: None, lambda: next(in_flight))
    none = Pace(lambda: False, lambda: False, lambda: None, lambda: True)
    time.sleep(0.02)

    started = time.monotonic()
    gap.let_others_first()
    went_on = time.monotonic() - started
    none.let_others_first()

    assert next(in_flight, None) is None
    assert went_on < 9 * 0.02
    assert time.monotonic() - started >= 9 * 0.02


def test_while_nobody_is_answered_it_does_not_rest() -> None:
    assert rested_s(Pace(lambda: False, lambda: False, lambda: None)) < WORK_S


def test_it_goes_on_when_the_last_one_is_answered() -> None:
    answered = iter([True, True, False])
    pace = Pace(lambda: next(answered), lambda: False, lambda: None)

    assert rested_s(pace) < WORK_S


def test_while_the_llm_has_work_it_waits_nine_times_as_long_as_a_forward_pass() -> None:
    pace = Pace(lambda: False, lambda: True, lambda: None)
    assert rested_s(pace) < WORK_S
    pace.forward_s = WORK_S / 4

    assert rested_s(pace) >= 9 * WORK_S / 4


def test_a_rest_ends_when_the_work_is_to_stop() -> None:
    def check() -> None:
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        rested_s(Pace(lambda: True, lambda: True, check))


def test_the_service_is_busy_while_a_request_is_in_flight_and_a_second_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.admission.LATELY_S", 0.2)
    admission = Admission(max_requests=9, max_bytes=100, retry_after_s=lambda: 1)
    seen = [admission.busy]
    aside = admission.enter(0, aside=True)
    seen.append(admission.busy)
    ticket = admission.enter(0)
    seen.append(admission.busy)
    aside.leave()
    seen.append(admission.busy)
    ticket.leave()
    seen.append(admission.busy)
    time.sleep(0.3)

    assert [*seen, admission.busy] == [False, False, True, True, True, False]


def test_a_moment_without_a_request_is_one_in_which_an_import_may_run() -> None:
    admission = Admission(max_requests=9, max_bytes=100, retry_after_s=lambda: 1)
    admission.enter(0, aside=True)
    admission.enter(0, long=True)
    before = admission.answering
    ticket = admission.enter(0)
    meanwhile = admission.answering
    ticket.leave()

    assert (before, meanwhile, admission.answering) == (False, True, False)


def test_who_looks_how_far_a_reindex_is_does_not_slow_it_down(serve: Serve) -> None:
    client = serve()
    admission: Admission = client.app.state.admission
    client.recommended(["1"])
    assert admission.busy
    wait_until(lambda: not admission.busy)

    for path in ("/admin/bundles", "/health/ready", "/metrics"):
        assert client.get(path).status_code == 200

    assert not admission.busy


def test_it_never_rests_while_writes_wait_for_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_some(client)
    rest, held = Pace.let_others_first, []
    lock = client.parts.store._lock

    def watched(pace: Pace) -> None:
        held.append(lock._is_owned())  # type: ignore[attr-defined]
        rest(pace)

    monkeypatch.setattr(Pace, "let_others_first", watched)
    with stopped_at(Upgrade, "_flip", monkeypatch) as (reached, go):
        ask(client, "other")
        assert reached.wait(WAIT_S)
        put(client, "late", "To be embedded with the catalogue locked")
        before = len(held)
        go.set()
        assert ended(client)["state"] == "flipped"

    assert before > 0
    assert not any(held)


def test_a_reindex_that_is_asked_beside_requests_comes_to_its_end(client: Client) -> None:
    put_some(client, 100)
    over = threading.Event()

    def asking() -> None:
        with Client(client.port) as mine:
            while not over.is_set():
                mine.post("/recommend", json={"history": ["1"]}).raise_for_status()

    thread = threading.Thread(target=asking)
    thread.start()
    try:
        ask(client, "other")
        assert ended(client)["state"] == "flipped"
    finally:
        over.set()
        thread.join()


def test_threads_take_turns_more_often_until_the_last_that_computes_much_is_done() -> None:
    with yielding():
        with yielding():
            pass
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)

    assert sys.getswitchinterval() == pytest.approx(USUAL_SWITCH_S)
