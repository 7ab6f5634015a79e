"""One thread that does all inference, in batches of a token budget."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.item import InvalidItem
from models.prompt import Prompt
from service.errors import NotReady, Overloaded
from service.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")
BYTES_PER_TOKEN = 4  # of English in a 50k vocabulary; only the filling of batches depends on it


class Unreadable(ValueError):
    """The LLM can make nothing of one prompt of several.

    Attributes:
        position: of the prompt in the request.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


@dataclass(frozen=True)
class LLMVector:
    """A prompt's LLM vector (d_llm,) float32, its token count and the attributes that were cut."""

    vector: NDArray[np.float32]
    tokens: int
    cut: tuple[str, ...]


class Encodes(Protocol):
    """What models.bundle.Bundle.encode returns."""

    vectors: NDArray[np.float32]
    tokens: NDArray[np.int32]
    cut: list[tuple[str, ...]]


@dataclass
class _Job:
    """One caller's prompts. The future is never set running, so that a caller can cancel it."""

    results: list[LLMVector | None]
    missing: int
    future: "Future[list[LLMVector]]" = field(default_factory=Future)


@dataclass(frozen=True)
class _Waiting:
    job: _Job
    position: int
    prompt: Prompt
    tokens: int  # an estimate
    since: float


class Batcher:
    """Encodes prompts and runs other calls on the bundle, all on one thread.

    Prompts of all callers queue one by one and leave in batches; a call goes before them, so
    that a recommendation waits for at most one forward pass. An exception reaches the callers
    whose prompt it was and nobody else. The work of a caller that was cancelled is dropped.

    Args:
        encode: (prompts, batch_tokens) -> Encoded; models.bundle.Bundle.encode.
        batch_tokens: estimated tokens at which a batch is full.
        wait_s: how long the first prompt of a batch waits for others.
        max_waiting: prompts that may wait; more are refused with Overloaded.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Prompt], int], Any],
        batch_tokens: int,
        wait_s: float,
        max_waiting: int,
        metrics: Metrics,
    ) -> None:
        self._encode = encode
        self._batch_tokens = batch_tokens
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_tokens = 0
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self._seconds_per_item = 0.05  # until measured
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether work that is submitted will ever be done."""
        return self._thread.is_alive()

    async def encode(self, prompts: Sequence[Prompt]) -> list[LLMVector]:
        """LLM vectors of prompts, in their order.

        Raises:
            Overloaded: too many prompts are waiting already.
            NotReady: the batcher is closed.
            Unreadable: one prompt has no token, or no finite vector.
            OutOfMemory: a prompt does not fit, not even alone.
        """
        if not prompts:
            return []
        job = _Job([None] * len(prompts), len(prompts))
        now = time.perf_counter()
        entries = [
            _Waiting(job, position, prompt, 1 + len(prompt.text) // BYTES_PER_TOKEN, now)
            for position, prompt in enumerate(prompts)
        ]
        with self._changed:
            self._admit(len(self._waiting), len(prompts))
            self._waiting.extend(entries)
            self._waiting_tokens += sum(entry.tokens for entry in entries)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    async def call(self, function: Callable[[], T]) -> T:
        """What a function returns or raises that runs on the inference thread.

        Raises:
            Overloaded: too many calls are waiting already.
            NotReady: the batcher is closed.
        """
        future: Future[T] = Future()
        with self._changed:
            self._admit(len(self._calls), 1)
            self._calls.append((function, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def _admit(self, waiting: int, more: int) -> None:
        if self._closed or not self.alive:
            raise NotReady("no inference is running", retry_after_s=5)
        if waiting + more > self._max_waiting:
            seconds = min(60.0, max(1.0, waiting * self._seconds_per_item))
            raise Overloaded(
                f"{waiting} items are waiting and at most {self._max_waiting} may; "
                f"come again in about {math.ceil(seconds)} s",
                retry_after_s=seconds,
            )

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop after the batch that runs; what still waits fails with NotReady."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._calls or self._waiting or self._closed):
                        self._changed.wait()
                    if self._closed:
                        return
                    call = self._calls.popleft() if self._calls else None
                if call:
                    self._answer_call(*call)
                else:
                    self._forward(self._collect())
        except BaseException:
            log.critical("the inference thread died", exc_info=True)
            raise
        finally:
            with self._changed:
                self._closed = True
                futures: list[Future[Any]] = [entry.job.future for entry in self._waiting]
                futures += [future for _, future in self._calls]
                self._waiting.clear()
                self._calls.clear()
                self._metrics.waiting.set(0)
            for future in futures:
                _fail(future, NotReady("the service is closing", retry_after_s=5))

    @staticmethod
    def _answer_call(function: Callable[[], Any], future: "Future[Any]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
        except BaseException:
            future.set_exception(NotReady("inference has stopped", retry_after_s=5))
            raise

    def _collect(self) -> list[_Waiting]:
        """The next batch, of at least one prompt unless all who waited have left."""
        batch: list[_Waiting] = []
        tokens = 0
        with self._changed:
            due = self._waiting[0].since + self._wait_s
            while (
                self._waiting_tokens < self._batch_tokens
                and not self._closed
                and (left := due - time.perf_counter()) > 0
            ):
                self._changed.wait(left)
            while self._waiting:
                entry = self._waiting[0]
                gone = entry.job.future.done()  # cancelled, or failed by another prompt
                if not gone and batch and tokens + entry.tokens > self._batch_tokens:
                    break
                self._waiting.popleft()
                self._waiting_tokens -= entry.tokens
                if not gone:
                    batch.append(entry)
                    tokens += entry.tokens
            self._metrics.waiting.set(len(self._waiting))
        return batch

    def _forward(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        for entry in batch:
            self._metrics.stage.labels("queue").observe(started - entry.since)
        try:
            encoded: Encodes = self._encode([entry.prompt for entry in batch], self._batch_tokens)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0].job.future, self._explained(error, batch[0].position))
                return
            # Whose prompt was it? Alone, each finds out; and what does not fit together may fit.
            log.warning("a batch of %d failed (%s); one by one", len(batch), type(error).__name__)
            for entry in batch:
                if not entry.job.future.done():
                    self._forward([entry])
            return
        except BaseException:
            # The thread ends with this one; nobody else will answer these callers.
            for entry in batch:
                _fail(entry.job.future, NotReady("inference has stopped", retry_after_s=5))
            raise
        seconds = time.perf_counter() - started
        self._metrics.stage.labels("forward").observe(seconds)
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_tokens.observe(int(encoded.tokens.sum()))
        self._seconds_per_item += 0.2 * (seconds / len(batch) - self._seconds_per_item)
        for row, entry in enumerate(batch):
            job = entry.job
            job.results[entry.position] = LLMVector(
                encoded.vectors[row].copy(), int(encoded.tokens[row]), tuple(encoded.cut[row])
            )
            job.missing -= 1
            if not job.missing:
                with suppress(InvalidStateError):  # cancelled meanwhile
                    job.future.set_result([each for each in job.results if each is not None])

    @staticmethod
    def _explained(error: Exception, position: int) -> Exception:
        if isinstance(error, InvalidItem | FloatingPointError):
            return Unreadable(position, type(error).__name__)
        return error


def _fail(future: "Future[Any]", error: Exception) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)
