"""How much may be in flight at once: requests, and bytes of their bodies."""

import math
import time
from collections.abc import Callable

from service.errors import NotReady, Overloaded

LATELY_S = 1.0


class Admission:
    """Lets requests in until there are too many of them, or of their bytes.

    Of one event loop; a request that is refused has cost two comparisons.

    Args:
        max_requests: requests in flight.
        max_bytes: bytes of their bodies, from the first to the end of the request: what was
            parsed of them lives as long.
        retry_after_s: when one that is refused may come again.
    """

    def __init__(
        self, max_requests: int, max_bytes: int, retry_after_s: Callable[[], float]
    ) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._closed = False
        self._busy_until = 0.0
        self._aside = self._long = 0
        self.requests = 0
        self.bytes = 0

    @property
    def busy(self) -> bool:
        """Whether requests are in flight, or were in the last second; any thread may ask."""
        return self.requests > self._aside or time.monotonic() < self._busy_until

    @property
    def answering(self) -> bool:
        """Whether requests are in flight that are over in a moment; any thread may ask."""
        return self.requests > self._aside + self._long

    def enter(self, declared: int, *, aside: bool = False, long: bool = False) -> "Ticket":
        """Let a request in.

        Args:
            declared: the length that it says its body has; 0 if it does not say.
            aside: whether it does not make the service `busy`.
            long: whether it takes as long as its client likes, which is nothing to wait for.

        Raises:
            Overloaded: too much is in flight.
            NotReady: closed.
        """
        if self._closed:
            raise NotReady("draining", retry_after_s=2)
        if self.requests >= self._max_requests:
            raise self._overloaded(f"{self.requests} requests are in flight", "requests")
        self.reserve(declared)
        self._aside += aside
        self._long += long
        self.requests += 1
        return Ticket(self, declared, aside, long)

    def reserve(self, more: int) -> None:
        """Count bytes, before they are kept.

        Raises:
            Overloaded: there would be too many.
        """
        if self.bytes + more > self._max_bytes:
            raise self._overloaded(f"bodies of {self.bytes} bytes are in flight", "bytes")
        self.bytes += more

    def _leave(self, reserved: int, aside: bool, long: bool) -> None:
        self.requests -= 1
        self._long -= long
        self.bytes -= reserved
        if aside:
            self._aside -= 1
        else:
            self._busy_until = time.monotonic() + LATELY_S

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    def _overloaded(self, fact: str, reason: str) -> Overloaded:
        seconds = self._retry_after_s()
        return Overloaded(
            f"{fact}, which is as much as may be; come again in about {math.ceil(seconds)} s",
            retry_after_s=seconds,
            reason=reason,
        )


class Ticket:
    """One request's share of what is in flight."""

    def __init__(self, admission: Admission, declared: int, aside: bool, long: bool) -> None:
        self._admission = admission
        self._aside, self._long = aside, long
        self._reserved = declared

    def received(self, total: int) -> None:
        """Count the bytes that have come so far; a length that was declared counts already.

        Raises:
            Overloaded: there are too many in flight.
        """
        if total > self._reserved:
            self._admission.reserve(total - self._reserved)
            self._reserved = total

    def leave(self) -> None:
        """The request is over."""
        self._admission._leave(self._reserved, self._aside, self._long)
