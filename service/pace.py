"""How work that nobody waits for keeps out of the way of those who ask meanwhile."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

# While others keep the LLM busy, or requests leave no gap: of ten parts of the time, one is ours.
PATIENCE = 9.0
PAUSE_S = 0.005
GAP_S = 0.001  # between two looks whether a request is still in flight

# How long a thread computes in Python before another that wants to goes on. A request passes from
# thread to thread several times, and each time waits as long for who computes much.
SWITCH_S, USUAL_SWITCH_S = 0.0005, 0.005
_yielding = 0  # how many are in the block below
_counting = Lock()


@contextmanager
def yielding() -> Iterator[None]:
    """Who computes much in Python lets others have the interpreter sooner, within the block."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(more: int) -> None:
    global _yielding  # noqa: PLW0603 - the interpreter's switch interval is one for all, too
    with _counting:
        _yielding += more
        sys.setswitchinterval(SWITCH_S if _yielding else USUAL_SWITCH_S)


class Pace:
    """The pace of one thread, from now on.

    Args:
        asked: whether anybody is answered, or was a moment ago.
        llm_busy: whether the LLM that is served has work.
        check: raises once the work is to stop.
        answering: whether anybody is answered at this moment.

    Attributes:
        forward_s: what the last forward pass of this thread took; to be set by who ran it.
    """

    def __init__(
        self,
        asked: Callable[[], bool],
        llm_busy: Callable[[], bool],
        check: Callable[[], None],
        answering: Callable[[], bool] = lambda: False,
    ) -> None:
        self._asked = asked
        self._llm_busy = llm_busy
        self._check = check
        self._answering = answering
        self._since = time.monotonic()
        self.forward_s = 0.0

    def let_others_first(self) -> None:
        """Rest, while anybody is answered, as long as was worked since the last rest.

        And wait while the LLM that is served has work, and for a moment without a request, but
        neither for ever. Whoever calls this holds no lock.

        Raises:
            Exception: what `check` raises.
        """
        now = time.monotonic()
        worked = now - self._since
        rested, found = now + worked, now + PATIENCE * worked
        waited = now + PATIENCE * self.forward_s
        while True:
            self._check()
            now = time.monotonic()
            if now < waited and self._llm_busy():
                time.sleep(PAUSE_S)
            elif now < rested and self._asked():
                time.sleep(min(PAUSE_S, rested - now))
            elif now < found and self._answering():
                time.sleep(GAP_S)
            else:
                break
        self._since = now
