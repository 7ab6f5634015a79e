"""How work that nobody waits for keeps out of the way of those who ask meanwhile."""

import time
from collections.abc import Callable

# While others keep the LLM busy: of ten parts of the time, one is ours.
PATIENCE = 9.0
PAUSE_S = 0.005


class Pace:
    """The pace of one thread.

    Args:
        llm_busy: whether the LLM that is served has work.
        check: raises once the work is to stop.

    Attributes:
        forward_s: what the last forward pass of this thread took; to be set by who ran it.
    """

    def __init__(self, llm_busy: Callable[[], bool], check: Callable[[], None]) -> None:
        self._llm_busy = llm_busy
        self._check = check
        self.forward_s = 0.0

    def let_others_first(self) -> None:
        """Wait while the LLM that is served has work, but not for ever.

        Raises:
            Exception: what `check` raises.
        """
        until = time.monotonic() + PATIENCE * self.forward_s
        while True:
            self._check()
            if not self._llm_busy() or time.monotonic() >= until:
                return
            time.sleep(PAUSE_S)
