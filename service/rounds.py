"""Questions that are answered together: what comes while one round runs goes into the next."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from service.errors import Overloaded

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Rounds(Generic[Question, Answer]):
    """Answers questions on a thread, all that wait at once, in the order they came.

    Nobody waits for company: a question that finds the thread free is a round by itself. To be
    used from one event loop at a time.

    Args:
        answer: answers several questions; in place of an answer it may give the exception that
            is to be raised for that question. What it raises itself is everybody's.
        most: questions of one round.
        max_waiting: questions that may wait; more are refused with Overloaded.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        thread: Executor,
        most: int = 32,
        max_waiting: int = 1024,
    ) -> None:
        self._answer = answer
        self._thread = thread
        self._most = most
        self._max_waiting = max_waiting
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            Overloaded: too many questions are waiting already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future))
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            here, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            asked = [(question, future) for question, future in here if not future.done()]
            if not asked:
                continue  # all have left
            try:
                answers = await loop.run_in_executor(
                    self._thread, self._answer, [question for question, _ in asked]
                )
            except Exception as error:
                answers = [error] * len(asked)
            for (_, future), answer in zip(asked, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
