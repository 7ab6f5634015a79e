"""LLM vectors of many callers' prompts: one thread, batches of a token budget, each prompt once."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models import OutOfMemory
from models.item import InvalidItem
from models.prompt import Prompt
from service import memory
from service.errors import NotReady, Overloaded
from service.metrics import Metrics, add_stage

if TYPE_CHECKING:
    from models.encoder import Encoded, Tokens

log = logging.getLogger(__name__)

TOKENS_PER_S = 1000.0  # until measured
RECOVER_AFTER = 64  # batches without an out-of-memory, before a larger one is tried again
# Of English. A tokenizer makes a token of every byte at worst, but charging that would refuse three
# of four requests that fit, while they are tokenised: a few milliseconds.
BYTES_PER_TOKEN = 3
TIDY_S = 60.0  # between two times that memory is given back
FATAL_AFTER = 8  # prompts in a row that fail alone, none for what they say: the device is broken

Keep = Callable[[Mapping[str, "LLMVector"]], Awaitable[None]]


class Unreadable(ValueError):
    """The LLM can make nothing of one prompt of several.

    Attributes:
        key: of the prompt.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


@dataclass(frozen=True)
class LLMVector:
    """A prompt's LLM vector (d_llm,) float32, its token count and the attributes that were cut."""

    vector: NDArray[np.float32]
    tokens: int
    cut: tuple[str, ...]


@dataclass(eq=False)
class _Entry:
    """One prompt that somebody waits for.

    `answer` gets a result only, never an exception: several may wait for it, or nobody.
    """

    key: str
    prompt: Prompt
    tokens: int  # a guess until it is tokenised
    answer: "asyncio.Future[LLMVector | Exception]"
    waiters: int = 0
    ids: "Tokens | None" = None
    since: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    ended: float = 0.0


class Batcher:
    """Runs prompts of all callers on one thread, in batches of similar length.

    A prompt that is waiting or running is not run again for whoever else asks for it. The
    oldest prompt is in the next batch, and those nearest to it in length fill the batch. What
    nobody waits for any more is dropped, unless it runs already. An error reaches those who
    asked for the very prompt that caused it. After an out-of-memory the batches are half as
    large, for a while.

    To be used from one event loop at a time.

    Args:
        tokenise: models.bundle.Bundle.tokenise.
        encode: (tokens, batch_tokens) -> Encoded; models.bundle.Bundle.encode_tokens.
        max_tokens: the most that `tokenise` makes of one prompt.
        batch_tokens: the tokens of a batch, padding included.
        wait_s: how long a prompt waits for others to fill a batch, where the batch before had
            several; a prompt that comes alone does not wait.
        max_queue_tokens: once so many tokens wait or run, more are refused with Overloaded. A
            request that finds fewer is let in whole, so that a large one is not refused for ever.
        keep: is given what was made of prompts, before those who asked have it; must not raise.
        start_thread: run once on the inference thread.
    """

    def __init__(
        self,
        tokenise: "Callable[[Sequence[Prompt]], list[Tokens]]",
        encode: "Callable[[Sequence[Tokens], int], Encoded]",
        max_tokens: int,
        batch_tokens: int,
        wait_s: float,
        max_queue_tokens: int,
        metrics: Metrics,
        keep: Keep | None = None,
        start_thread: Callable[[], None] | None = None,
    ) -> None:
        self._tokenise_prompts = tokenise
        self._encode = encode
        self._max_tokens = max_tokens
        self._batch_tokens = self._budget = batch_tokens
        self._wait_s = wait_s
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self._keep = keep
        metrics.batch_budget.set(batch_tokens)
        metrics.queue_limit.set(max_queue_tokens)
        self._entries: dict[str, _Entry] = {}  # all that wait or run
        self._ready: dict[str, _Entry] = {}  # tokenised and not yet running, oldest first
        self._queued = 0  # tokens of _entries
        self._last_batch = 1
        self._fine = 0  # batches since the last out-of-memory
        self._faults = 0  # see FATAL_AFTER
        self._rate = TOKENS_PER_S
        self._running_since: float | None = None
        self._tidied = time.monotonic()
        self._died = self._closed = False
        self._filled = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump: asyncio.Task[None] | None = None
        self._inference = ThreadPoolExecutor(1, "inference", start_thread)
        self._tokenising = ThreadPoolExecutor(1, "tokenise")

    @property
    def alive(self) -> bool:
        """Whether inference can go on; False once its thread has met a fatal error."""
        return not self._died

    @property
    def running_s(self) -> float:
        """How long the batch that runs has been running; 0 where none does."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._queued

    def retry_after_s(self) -> float:
        """When what waits now will be done, by the measured rate: 1 to 60 seconds."""
        return min(60.0, max(1.0, self._queued / self._rate))

    async def encode(self, prompts: Mapping[str, Prompt]) -> dict[str, LLMVector]:
        """LLM vectors of prompts by key; equal keys must mean equal prompts, whoever asks.

        Raises:
            Overloaded: too many tokens are waiting already.
            NotReady: the batcher is closed, or its thread is dead.
            Unreadable: one prompt has no token, or no finite vector.
            OutOfMemory: a prompt does not fit, not even alone.
        """
        if not prompts:
            return {}
        wanted = {key: entry for key in prompts if (entry := self._entries.get(key))}
        fresh = self._admit({key: each for key, each in prompts.items() if key not in wanted})
        self._metrics.embedded.labels("inflight").inc(len(wanted))
        wanted |= fresh
        for entry in wanted.values():
            entry.waiters += 1
        try:
            await asyncio.wait([entry.answer for entry in wanted.values()])
        finally:
            for entry in wanted.values():
                entry.waiters -= 1
                # What is being tokenised is counted until that is done, for it takes its time.
                if not entry.waiters and entry.ids and not entry.started:
                    self._forget(entry)
        ran = [entry for entry in wanted.values() if entry.ended]
        if ran:
            started = min(entry.started for entry in ran)
            add_stage("queue", started - min(entry.since for entry in ran))
            add_stage("forward", max(entry.ended for entry in ran) - started)
        found = {}
        for key, entry in wanted.items():
            answer = entry.answer.result()
            if isinstance(answer, Exception):
                raise answer
            found[key] = answer
        return found

    async def cuts(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        """Of each prompt the attributes that would lose text to the limit; nothing is run.

        Raises:
            NotReady: the batcher is closed, or its thread is dead.
            InvalidItem: one prompt has no token.
        """
        if self._closed or self._died:
            raise NotReady("no inference is running", retry_after_s=5)
        tokens = await asyncio.get_running_loop().run_in_executor(
            self._tokenising, self._tokenise_prompts, prompts
        )
        return [each.cut for each in tokens]

    def _admit(self, prompts: Mapping[str, Prompt]) -> dict[str, _Entry]:
        """Queue prompts, all or none; their tokens are guessed by bytes until they are known."""
        if self._closed or self._died:
            raise NotReady("no inference is running", retry_after_s=5)
        if not prompts:
            return {}
        most = {
            key: min(1 + len(prompt.body.encode()) // BYTES_PER_TOKEN, self._max_tokens)
            for key, prompt in prompts.items()
        }
        if self._queued >= self._max_queue_tokens:
            seconds = self.retry_after_s()
            raise Overloaded(
                f"{self._queued} tokens are waiting, and {self._max_queue_tokens} are the most; "
                f"come again in about {seconds:.0f} s",
                retry_after_s=seconds,
            )
        loop = asyncio.get_running_loop()
        fresh = {
            key: _Entry(key, prompt, most[key], loop.create_future())
            for key, prompt in prompts.items()
        }
        self._entries |= fresh
        self._count(sum(most.values()))
        # A task of its own: who asked first may leave, and others wait for the same prompts.
        self._start(self._tokenise(list(fresh.values())))
        return fresh

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count(self, tokens: int) -> None:
        self._queued += tokens
        self._metrics.queue_tokens.set(self._queued)

    def _forget(self, entry: _Entry) -> None:
        """Let an entry go that has its answer, or whom nobody waits for."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
            self._ready.pop(entry.key, None)
            self._count(-entry.tokens)

    def _settle(self, entry: _Entry, answer: LLMVector | Exception) -> None:
        self._forget(entry)
        if not entry.answer.done():
            entry.answer.set_result(answer)

    async def _tokenise(self, entries: Sequence[_Entry]) -> None:
        started = time.perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(
            self._tokenising, self._tokenised, entries
        )
        self._metrics.stage.labels("tokenize").observe(time.perf_counter() - started)
        again = []
        for entry, ids in zip(entries, found, strict=True):
            if self._entries.get(entry.key) is not entry:
                continue  # the batcher is closed
            if not entry.waiters:
                self._forget(entry)
            elif ids is None:
                again.append(entry)  # nobody waited for it then, and somebody does now
            elif isinstance(ids, Exception):
                self._settle(entry, ids)
            else:
                self._count(ids.own - entry.tokens)
                entry.ids, entry.tokens = ids, ids.own
                self._ready[entry.key] = entry
        if again:
            self._start(self._tokenise(again))
        if sum(entry.tokens for entry in self._ready.values()) >= self._budget:
            self._filled.set()
        if self._ready and (self._pump is None or self._pump.done()):
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def _tokenised(self, entries: Sequence[_Entry]) -> "list[Tokens | Exception | None]":
        """Of each entry its tokens, or what is wrong with it; None where nobody waits for it."""
        wanted = {id(entry): entry for entry in entries if entry.waiters}
        if not wanted:
            return [None] * len(entries)
        try:
            found = iter(self._tokenise_prompts([entry.prompt for entry in wanted.values()]))
        except Exception as error:
            if len(entries) == 1:
                return [self._explained(error, entries[0].key)]
            return [each for entry in entries for each in self._tokenised([entry])]
        return [next(found) if id(entry) in wanted else None for entry in entries]

    async def _run(self) -> None:
        """Run batch after batch until nothing is ready."""
        loop = asyncio.get_running_loop()
        while self._ready:
            await self._company()
            batch = self._collect()
            if not batch:
                continue
            self._running_since = time.monotonic()
            try:
                answers = await loop.run_in_executor(self._inference, self._forward, batch)
            except BaseException:  # no thread could be started
                self._die()
                raise
            finally:
                self._running_since = None
            if answers is None:
                self._die()
                return
            self._start(self._deliver(batch, answers))
            if not self._closed and time.monotonic() - self._tidied > TIDY_S:
                self._tidied = time.monotonic()
                await loop.run_in_executor(self._inference, memory.give_back)

    async def _deliver(
        self, batch: Sequence[_Entry], answers: Sequence[LLMVector | Exception]
    ) -> None:
        """Keep what is new, and answer; the next batch does not wait for it."""
        both = list(zip(batch, answers, strict=True))
        if self._keep:
            made = {entry.key: each for entry, each in both if isinstance(each, LLMVector)}
            await self._keep(made)
        for entry, answer in both:
            self._settle(entry, answer)

    async def _company(self) -> None:
        """Wait for others to fill the batch, if the last one had several."""
        oldest = next(iter(self._ready.values()))
        left = oldest.since + self._wait_s - time.perf_counter()
        self._filled.clear()
        tokens = sum(entry.tokens for entry in self._ready.values())
        if self._last_batch > 1 and left > 0 and tokens < self._budget and not self._closed:
            try:
                async with asyncio.timeout(left):
                    await self._filled.wait()
            except TimeoutError:
                pass

    def _collect(self) -> list[_Entry]:
        """The next batch: the oldest entry and, as far as they fit, those nearest in length."""
        if not self._ready:
            return []
        oldest = next(iter(self._ready.values()))
        longest = oldest.tokens
        batch: list[_Entry] = []
        for entry in sorted(self._ready.values(), key=lambda e: abs(e.tokens - oldest.tokens)):
            widest = max(longest, entry.tokens)
            if not batch or widest * (len(batch) + 1) <= self._budget:
                longest = widest
                batch.append(entry)
        now = time.perf_counter()
        for entry in batch:
            del self._ready[entry.key]
            entry.started = now
            self._metrics.stage.labels("queue").observe(now - entry.since)
        self._last_batch = len(batch)
        return batch

    def _forward(self, batch: Sequence[_Entry]) -> list[LLMVector | Exception] | None:
        """The answers of a batch, on the inference thread; None where the thread is at its end."""
        try:
            return self._answers(batch)
        except BaseException:
            log.critical("inference met a fatal error", exc_info=True)
            return None

    def _answers(self, batch: Sequence[_Entry], again: bool = False) -> list[LLMVector | Exception]:
        started = time.perf_counter()
        try:
            encoded = self._encode([entry.ids for entry in batch if entry.ids], self._budget)
        except Exception as error:
            if len(batch) == 1:
                batch[0].ended = time.perf_counter()
                return [self._alone(error, batch[0].key)]
            if isinstance(error, OutOfMemory) and not again:
                self._fine = 0
                self._set_budget(max(1, self._budget // 2))
            # Whose prompt was it? And what does not fit together may fit in halves.
            log.warning("a batch of %d failed (%s); in halves", len(batch), type(error).__name__)
            half = len(batch) // 2
            return [*self._answers(batch[:half], True), *self._answers(batch[half:], True)]
        self._observe(batch, encoded, time.perf_counter() - started)
        return [
            LLMVector(encoded.vectors[row].copy(), int(encoded.tokens[row]), encoded.cut[row])
            for row in range(len(batch))
        ]

    def _alone(self, error: Exception, key: str) -> Exception:
        """What to tell of a prompt that failed by itself.

        Raises:
            RuntimeError: so many did that it is not for what they say.
        """
        answer = self._explained(error, key)
        if not isinstance(answer, Unreadable | OutOfMemory):
            self._faults += 1
            if self._faults >= FATAL_AFTER:
                raise RuntimeError(f"{self._faults} prompts in a row have failed") from error
        return answer

    def _set_budget(self, tokens: int) -> None:
        self._budget = tokens
        self._metrics.batch_budget.set(tokens)

    def _observe(self, batch: Sequence[_Entry], encoded: "Encoded", seconds: float) -> None:
        tokens = int(encoded.tokens.sum())
        self._metrics.embedded.labels("model").inc(len(batch))
        self._metrics.stage.labels("forward").observe(seconds)
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.padding.observe(encoded.padding)
        self._rate += 0.2 * (tokens / max(seconds, 1e-6) - self._rate)
        for entry in batch:
            entry.ended = time.perf_counter()
        self._faults = 0
        self._fine += 1
        if self._budget < self._batch_tokens and self._fine >= RECOVER_AFTER:
            self._fine = 0
            self._set_budget(min(2 * self._budget, self._batch_tokens))

    @staticmethod
    def _explained(error: Exception, key: str) -> Exception:
        if isinstance(error, InvalidItem | FloatingPointError):
            return Unreadable(key, type(error).__name__)
        return error

    def _die(self) -> None:
        self._died = True
        for entry in list(self._entries.values()):
            self._settle(entry, NotReady("inference has stopped", retry_after_s=5))

    async def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the batch that runs; what still waits fails with NotReady.

        Args:
            timeout_s: how long to wait for that batch; one that hangs is left to itself.
        """
        self._closed = True
        self._filled.set()
        for entry in list(self._entries.values()):
            if not entry.started:
                self._settle(entry, NotReady("the service is closing", retry_after_s=5))
        if self._pump:
            await asyncio.wait([self._pump], timeout=timeout_s)
        if self._tasks:  # the last answers
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self._inference.shutdown(wait=False)
        self._tokenising.shutdown(wait=False)
