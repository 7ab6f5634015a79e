import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from models import OutOfMemory
from models.encoder import Encoded
from models.item import InvalidItem
from models.prompt import Prompt
from service.batcher import Batcher, Unreadable
from service.errors import NotReady, Overloaded
from service.metrics import Metrics


class Reader:
    """An encoder whose vector is the length of the prompt; some words make it fail."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, prompts: Sequence[Prompt], batch_tokens: int) -> Encoded:
        self.gate.wait(10)
        self.batches.append(len(prompts))
        text = " ".join(prompt.body for prompt in prompts)
        if "unreadable" in text:
            raise InvalidItem("no token")
        if "huge" in text or ("large" in text and len(prompts) > 1):
            raise OutOfMemory("does not fit")
        if "deadly" in text:
            raise SystemExit
        vectors = np.array([[len(prompt.body)] for prompt in prompts], np.float32)
        return Encoded(vectors, np.ones(len(prompts), np.int32), [()] * len(prompts))


def prompt(body: str) -> Prompt:
    return Prompt("", body, (("title", len(body)),))


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def batcher(reader: Reader) -> Iterator[Batcher]:
    made = Batcher(reader, batch_tokens=10, wait_s=0.02, max_waiting=20, metrics=Metrics())
    yield made
    reader.gate.set()
    made.close()


def run(*work: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    async def together() -> list[Any]:
        return await asyncio.gather(*(each() for each in work), return_exceptions=True)

    return asyncio.run(together())


def encode(batcher: Batcher, *bodies: str) -> Callable[[], Coroutine[Any, Any, Any]]:
    async def work() -> list[float]:
        found = await batcher.encode([prompt(body) for body in bodies])
        return [float(each.vector[0]) for each in found]

    return work


def test_callers_share_batches_and_get_their_own(batcher: Batcher, reader: Reader) -> None:
    answers = run(*(encode(batcher, "x" * n, "y" * (n + 1)) for n in range(1, 4)))

    assert answers == [[1, 2], [2, 3], [3, 4]]
    assert reader.batches == [6]


def test_a_batch_stays_within_its_tokens(batcher: Batcher, reader: Reader) -> None:
    (answer,) = run(encode(batcher, *["x" * 16] * 7))  # 5 estimated tokens each

    assert answer == [16] * 7
    assert reader.batches == [2, 2, 2, 1]


def test_an_error_reaches_only_the_caller_whose_prompt_it_was(batcher: Batcher) -> None:
    fine, bad, large, huge = run(
        encode(batcher, "a"),
        encode(batcher, "b", "unreadable"),
        encode(batcher, "large"),
        encode(batcher, "huge"),
    )

    assert fine == [1]
    assert isinstance(bad, Unreadable)
    assert bad.position == 1
    assert large == [5]  # alone it fits
    assert isinstance(huge, OutOfMemory)


def test_a_full_queue_refuses_and_says_when_to_return(batcher: Batcher, reader: Reader) -> None:
    reader.gate.clear()

    async def work() -> tuple[Overloaded, int]:
        first = asyncio.ensure_future(batcher.encode([prompt("x")]))
        await asyncio.sleep(0.1)  # it runs, and waits no more
        waiting = asyncio.ensure_future(batcher.encode([prompt("x")] * 20))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await batcher.encode([prompt("x")])
        reader.gate.set()
        await first
        return refused.value, len(await waiting)

    error, answered = asyncio.run(work())

    assert error.retry_after_s is not None
    assert 1 <= error.retry_after_s <= 60
    assert answered == 20


def test_cancelled_work_is_not_done(batcher: Batcher, reader: Reader) -> None:
    reader.gate.clear()

    async def work() -> None:
        first = asyncio.ensure_future(batcher.encode([prompt("x")]))
        await asyncio.sleep(0.1)
        left = asyncio.ensure_future(batcher.encode([prompt("y")] * 9))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        reader.gate.set()
        await first
        await batcher.encode([prompt("z")])

    asyncio.run(work())

    assert reader.batches == [1, 1]


def test_calls_run_on_the_inference_thread_before_waiting_prompts(
    batcher: Batcher, reader: Reader
) -> None:
    reader.gate.clear()
    done: list[str] = []

    async def work() -> str:
        first = asyncio.ensure_future(batcher.encode([prompt("x")]))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(batcher.encode([prompt("y")]))
        second.add_done_callback(lambda _: done.append("encode"))
        await asyncio.sleep(0)
        call = asyncio.ensure_future(batcher.call(lambda: threading.current_thread().name))
        call.add_done_callback(lambda _: done.append("call"))
        await asyncio.sleep(0)
        reader.gate.set()
        await asyncio.gather(first, second, call)
        return await call

    assert asyncio.run(work()) == "inference"
    assert done == ["call", "encode"]


def test_an_error_of_a_call_is_its_callers(batcher: Batcher) -> None:
    def wrong() -> None:
        raise KeyError("x")

    failed, fine = run(lambda: batcher.call(wrong), lambda: batcher.call(lambda: 3))

    assert isinstance(failed, KeyError)
    assert fine == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_seen_and_nobody_waits_for_it(batcher: Batcher) -> None:
    (answer,) = run(encode(batcher, "deadly"))

    assert isinstance(answer, NotReady)
    deadline = time.monotonic() + 5
    while batcher.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not batcher.alive
    assert isinstance(run(encode(batcher, "x"))[0], NotReady)


def test_closing_fails_what_waits(reader: Reader) -> None:
    batcher = Batcher(reader, 10, 0.0, 20, Metrics())
    reader.gate.clear()

    async def work() -> list[Any]:
        first = asyncio.ensure_future(batcher.encode([prompt("x")]))
        await asyncio.sleep(0.1)
        waiting = asyncio.ensure_future(batcher.encode([prompt("y")]))
        await asyncio.sleep(0)
        closing = asyncio.get_running_loop().run_in_executor(None, batcher.close)
        await asyncio.sleep(0.05)
        reader.gate.set()
        await closing
        return list(await asyncio.gather(first, waiting, return_exceptions=True))

    first, waiting = asyncio.run(work())

    assert len(first) == 1  # the batch that ran is finished
    assert isinstance(waiting, NotReady)
