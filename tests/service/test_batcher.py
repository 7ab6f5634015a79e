import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from models import OutOfMemory
from models.encoder import Encoded, Tokens
from models.item import InvalidItem
from models.prompt import Prompt
from service import batcher as module
from service.batcher import Batcher, LLMVector, Unreadable
from service.errors import NotReady, Overloaded
from service.metrics import Metrics

MAX_TOKENS = 100
T = TypeVar("T")


class Reader:
    """An LLM of one token a letter, whose vector is their number; some words make it fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.budgets: list[int] = []
        self.fits = 10**9  # letters that fit into memory
        self.gate = threading.Event()
        self.gate.set()

    def tokenise(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        if any("tokenless" in prompt.body for prompt in prompts):
            raise InvalidItem("no token")
        return [Tokens([ord(c) for c in p.body], len(p.body), ()) for p in prompts]

    def encode(self, tokens: Sequence[Tokens], batch_tokens: int) -> Encoded:
        self.gate.wait(10)
        lengths = [each.own for each in tokens]
        self.batches.append(lengths)
        self.budgets.append(batch_tokens)
        text = " ".join("".join(map(chr, each.ids)) for each in tokens)
        if "infinite" in text:
            raise FloatingPointError("not finite")
        if sum(lengths) > self.fits:
            raise OutOfMemory("does not fit")
        if "deadly" in text:
            raise SystemExit
        vectors = np.array(lengths, np.float32)[:, None]
        return Encoded(vectors, np.array(lengths, np.int32), [()] * len(tokens))

    def batcher(
        self,
        batch_tokens: int = 12,
        wait_s: float = 0.05,
        max_queue_tokens: int = 200,
        metrics: Metrics | None = None,
        **options: Any,  # noqa: ANN401 - Batcher's own
    ) -> Batcher:
        return Batcher(
            self.tokenise,
            self.encode,
            MAX_TOKENS,
            batch_tokens,
            wait_s,
            max_queue_tokens,
            metrics or Metrics(),
            **options,
        )


@pytest.fixture
def reader() -> Reader:
    return Reader()


def prompt(body: str) -> Prompt:
    return Prompt("", body, (("title", len(body)),))


async def encode(batcher: Batcher, *bodies: str) -> list[float]:
    found = await batcher.encode({body: prompt(body) for body in bodies})
    return [float(found[body].vector[0]) for body in bodies]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def run(batcher: Batcher, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def and_close() -> T:
        try:
            return await work()
        finally:
            await batcher.close()

    return asyncio.run(and_close())


def queued(reader: Reader, batcher: Batcher, *asked: Sequence[str]) -> list[Any]:
    """What callers get who all come while another batch runs."""

    async def work() -> list[Any]:
        reader.gate.clear()
        first = asyncio.ensure_future(encode(batcher, "first"))
        await until(lambda: batcher.running_s > 0)
        callers = [asyncio.ensure_future(encode(batcher, *bodies)) for bodies in asked]
        await asyncio.sleep(0)
        await until(
            lambda: all(e.started or k in batcher._ready for k, e in batcher._entries.items())
        )
        reader.gate.set()
        await first
        return list(await asyncio.gather(*callers, return_exceptions=True))

    return list(run(batcher, work))


def test_callers_share_batches_and_get_their_own(reader: Reader) -> None:
    answers = queued(reader, reader.batcher(), ["a", "bb"], ["ccc"])

    assert answers == [[1, 2], [3]]
    assert reader.batches == [[5], [1, 2, 3]]


def test_a_batch_holds_what_is_alike_in_length_and_no_more_tokens_than_it_may(
    reader: Reader,
) -> None:
    queued(reader, reader.batcher(), ["aaaa"], ["b" * 9], ["cc"], ["ddd"], ["eeeee"])

    # The oldest, and those nearest to its 4: padded to 4, three fill the 12.
    assert [sorted(batch) for batch in reader.batches[1:]] == [[2, 3, 4], [9], [5]]


def test_a_prompt_that_waits_or_runs_is_not_run_again(reader: Reader) -> None:
    metrics = Metrics()
    answers = queued(reader, reader.batcher(metrics=metrics), *[["same"]] * 9, ["first"])

    assert answers == [[4]] * 9 + [[5]]
    assert reader.batches == [[5], [4]]
    assert metrics.embedded.labels("inflight")._value.get() == 9
    assert metrics.embedded.labels("model")._value.get() == 2


def test_whoever_asked_first_may_leave_the_others_still_get_it(reader: Reader) -> None:
    batcher = reader.batcher()

    async def work() -> list[float]:
        reader.gate.clear()
        first = asyncio.ensure_future(encode(batcher, "first"))
        await until(lambda: batcher.running_s > 0)
        leaves = asyncio.ensure_future(encode(batcher, "same"))
        await asyncio.sleep(0)
        stays = asyncio.ensure_future(encode(batcher, "same"))
        await asyncio.sleep(0)
        leaves.cancel()
        reader.gate.set()
        await first
        return await stays

    assert run(batcher, work) == [4]


def test_what_nobody_waits_for_is_dropped_and_frees_its_tokens(reader: Reader) -> None:
    metrics = Metrics()
    batcher = reader.batcher(metrics=metrics)

    async def work() -> None:
        reader.gate.clear()
        first = asyncio.ensure_future(encode(batcher, "first"))
        await until(lambda: batcher.running_s > 0)
        left = asyncio.ensure_future(encode(batcher, "a" * 9, "b" * 9))
        await until(lambda: batcher._queued == 23)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert metrics.queue_tokens._value.get() == 5
        reader.gate.set()
        await first
        await encode(batcher, "last")

    run(batcher, work)

    assert reader.batches == [[5], [4]]
    assert metrics.queue_tokens._value.get() == 0


def test_one_that_comes_alone_does_not_wait_and_several_wait_for_more(reader: Reader) -> None:
    wait_s = 0.6
    batcher = reader.batcher(wait_s=wait_s, batch_tokens=100)

    async def work() -> tuple[float, list[list[int]]]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await encode(batcher, "alone")
        seconds = loop.time() - started
        await encode(batcher, "a", "bb")  # a batch of two
        early = asyncio.ensure_future(encode(batcher, "early"))
        await asyncio.sleep(0.05)
        await asyncio.gather(early, encode(batcher, "late"))
        return seconds, reader.batches

    seconds, batches = run(batcher, work)

    assert seconds < wait_s
    assert batches == [[5], [1, 2], [5, 4]]


def test_an_error_reaches_only_those_who_asked_for_that_prompt(reader: Reader) -> None:
    fine, tokenless, infinite = queued(
        reader, reader.batcher(batch_tokens=100), ["a", "bb"], ["c", "tokenless"], ["infinite", "d"]
    )

    assert fine == [1, 2]
    assert isinstance(tokenless, Unreadable)
    assert tokenless.key == "tokenless"
    assert isinstance(infinite, Unreadable)
    assert infinite.key == "infinite"


def test_an_out_of_memory_halves_the_batches_and_fails_only_what_cannot_fit(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECOVER_AFTER", 4)
    reader.fits = 10
    metrics = Metrics()
    batcher = reader.batcher(batch_tokens=40, metrics=metrics)
    answers = queued(reader, batcher, ["aaaa", "bbbb", "cccc"], ["d" * 12])

    assert answers[0] == [4, 4, 4]
    assert isinstance(answers[1], OutOfMemory)
    assert metrics.batch_budget._value.get() == 20

    async def more() -> None:
        again = reader.batcher(batch_tokens=40, metrics=metrics)
        again._set_budget(20)
        for number in range(4):
            await encode(again, f"{number}")
        await again.close()

    asyncio.run(more())
    assert metrics.batch_budget._value.get() == 40  # after a while a larger one is tried again


def test_a_full_queue_refuses_and_says_when_to_return(reader: Reader) -> None:
    batcher = reader.batcher(max_queue_tokens=50)

    async def work() -> Overloaded:
        reader.gate.clear()
        waiting = asyncio.ensure_future(encode(batcher, "a" * 45))
        await until(lambda: batcher.running_s > 0)
        fits = asyncio.ensure_future(encode(batcher, "b" * 20))  # the queue is not yet full
        await until(lambda: batcher._queued == 65)
        with pytest.raises(Overloaded) as refused:
            await encode(batcher, "c")
        joins = asyncio.ensure_future(encode(batcher, "a" * 45))  # costs nothing
        await asyncio.sleep(0)
        reader.gate.set()
        assert await asyncio.gather(waiting, fits, joins) == [[45], [20], [45]]
        return refused.value

    error = run(batcher, work)

    assert error.retry_after_s is not None
    assert 1 <= error.retry_after_s <= 60
    assert "65 tokens are waiting, and 50 are the most" in str(error)


def test_what_leaves_before_it_is_tokenised_counts_until_then_and_is_not_tokenised(
    reader: Reader,
) -> None:
    batcher = reader.batcher()
    tokenised: list[str] = []
    begun, gate = threading.Event(), threading.Event()

    def slowly(prompts: Sequence[Prompt]) -> list[Tokens]:
        begun.set()
        gate.wait(10)
        tokenised.extend(prompt.body for prompt in prompts)
        return reader.tokenise(prompts)

    batcher._tokenise_prompts = slowly

    async def work() -> tuple[int, list[float]]:
        first = asyncio.ensure_future(encode(batcher, "first"))
        await until(begun.is_set)  # it is being tokenised
        leaves = asyncio.ensure_future(encode(batcher, "leaves", "stays"))
        await asyncio.sleep(0)
        stays = asyncio.ensure_future(encode(batcher, "stays"))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        queued = batcher._queued
        gate.set()
        await first
        return queued, await stays

    queued, stayed = run(batcher, work)

    assert queued == 2 + 3 + 2  # of 5, 6 and 5 bytes, at 3 a token
    assert stayed == [5]
    assert tokenised == ["first", "stays"]
    assert batcher._queued == 0


def test_what_was_made_is_kept_even_if_another_prompt_of_the_request_fails(
    reader: Reader,
) -> None:
    kept: list[str] = []

    async def keep(made: Mapping[str, LLMVector]) -> None:
        kept.extend(made)

    batcher = reader.batcher(batch_tokens=100, keep=keep)
    (failed,) = queued(reader, batcher, ["a", "infinite", "b"])

    assert isinstance(failed, Unreadable)
    assert sorted(kept) == ["a", "b", "first"]


def test_memory_is_given_back_between_batches_but_not_between_all(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []  # after how many batches
    monkeypatch.setattr("service.memory.give_back", lambda: given.append(len(reader.batches)))
    batcher = reader.batcher()

    async def work() -> None:
        await encode(batcher, "a")
        await encode(batcher, "bb")
        monkeypatch.setattr(module, "TIDY_S", 0.0)
        await encode(batcher, "ccc")
        await until(lambda: bool(given))
        monkeypatch.setattr(module, "TIDY_S", 60.0)
        await encode(batcher, "dddd")

    run(batcher, work)

    assert given == [3]


def test_a_device_that_fails_every_prompt_counts_as_dead(reader: Reader) -> None:
    batcher = reader.batcher()

    def broken(*_: object) -> Encoded:
        raise RuntimeError("an illegal memory access was encountered")

    batcher._encode = broken

    async def work() -> list[Any]:
        asked = [encode(batcher, f"prompt {number}") for number in range(module.FATAL_AFTER)]
        return [(await asyncio.gather(each, return_exceptions=True))[0] for each in asked]

    errors = run(batcher, work)

    assert [type(error) for error in errors[:-1]] == [RuntimeError] * (module.FATAL_AFTER - 1)
    assert isinstance(errors[-1], NotReady)
    assert not batcher.alive


def test_a_thread_that_cannot_start_counts_as_dead(reader: Reader) -> None:
    def fail() -> None:
        raise OSError("no more threads")

    batcher = reader.batcher(start_thread=fail)

    async def work() -> list[Any]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        return list(await asyncio.gather(encode(batcher, "x"), return_exceptions=True))

    (error,) = run(batcher, work)

    assert isinstance(error, NotReady)
    assert not batcher.alive


def test_what_no_retry_could_cure_is_not_refused_as_too_much(reader: Reader) -> None:
    batcher = reader.batcher(max_queue_tokens=50)

    assert run(batcher, lambda: encode(batcher, "a" * 60, "b" * 60)) == [60, 60]


def test_tokens_are_guessed_by_bytes_until_they_are_known(reader: Reader) -> None:
    metrics = Metrics()
    batcher = reader.batcher(metrics=metrics)
    seen = []

    async def work() -> None:
        reader.gate.clear()
        asked = asyncio.ensure_future(encode(batcher, "日本語で"))
        await asyncio.sleep(0)
        seen.append(metrics.queue_tokens._value.get())
        await until(lambda: batcher.running_s > 0)
        seen.append(metrics.queue_tokens._value.get())
        reader.gate.set()
        await asked

    run(batcher, work)

    assert seen == [5, 4]  # 12 bytes, 4 tokens


def test_a_batch_that_hangs_is_seen(reader: Reader) -> None:
    batcher = reader.batcher()

    async def work() -> tuple[float, float]:
        reader.gate.clear()
        asked = asyncio.ensure_future(encode(batcher, "x"))
        await asyncio.sleep(0.2)
        hanging = batcher.running_s
        reader.gate.set()
        await asked
        return hanging, batcher.running_s

    hanging, after = run(batcher, work)

    assert hanging > 0.1
    assert after == 0


def test_a_dead_thread_is_seen_and_nobody_waits_for_it(reader: Reader) -> None:
    batcher = reader.batcher()
    dead, waiting = queued(reader, batcher, ["deadly"], ["w" * 12])

    assert isinstance(dead, NotReady)
    assert isinstance(waiting, NotReady)
    assert not batcher.alive


def test_closing_finishes_what_runs_and_fails_what_waits(reader: Reader) -> None:
    batcher = reader.batcher()

    async def work() -> list[Any]:
        reader.gate.clear()
        runs = asyncio.ensure_future(encode(batcher, "x"))
        await until(lambda: batcher.running_s > 0)
        waits = asyncio.ensure_future(encode(batcher, "y"))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, reader.gate.set)
        await batcher.close()
        return list(await asyncio.gather(runs, waits, return_exceptions=True))

    runs, waits = asyncio.run(work())

    assert runs == [1]
    assert isinstance(waits, NotReady)
    with pytest.raises(NotReady):
        asyncio.run(encode(batcher, "z"))
