"""What keeps the index in shape while the catalogue changes, on a thread of its own."""

import logging
import threading
from collections.abc import Callable

import faiss

from service import memory
from service.index import Main, Rebuilt, Snapshot

log = logging.getLogger(__name__)

CLOSING_S = 3.0
RETRY_S = 10.0  # after a failure
# Items from which on it takes less to read an index than to make it.
KEEP_FROM = 20_000
KEEP_SHARE = 0.2  # of the items changed since, for the next generation


class Upkeep:
    """Makes a new main block when one is due, and keeps it on disk now and then.

    Args:
        current: the latest snapshot.
        replace: has the latest snapshot lie over a new main block.
        keep: writes a generation, and may raise OSError.
        kept: the latest version that the newest generation has; 0 where there is none.
    """

    def __init__(
        self,
        current: Callable[[], Snapshot],
        replace: Callable[[Rebuilt], None],
        keep: Callable[[Main], None],
        kept: int,
    ) -> None:
        self._current = current
        self._replace = replace
        self._keep = keep
        self._kept = kept
        self._changed = threading.Condition()
        self._asked = 1  # how often; what was found at start may be due already
        self._done = 0  # up to which of these
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Say that the catalogue has changed."""
        with self._changed:
            if not self._closed and self._current().overgrown:
                self._ask()

    def hold_back(self, seconds: float) -> None:
        """Wait while much more is due than one block, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._current().choked, seconds)

    def settle(self) -> None:
        """Wait until nothing is due."""
        with self._changed:
            mine = self._ask()
            self._changed.wait_for(lambda: self._over(mine))

    def close(self) -> None:
        """Stop; what is being made is not waited for much longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSING_S)

    def _ask(self) -> int:
        self._asked += 1
        self._changed.notify_all()
        return self._asked

    def _over(self, asked: int) -> bool:
        return self._closed or self._done >= asked

    def _run(self) -> None:
        faiss.omp_set_num_threads(1)  # of this thread: the other cores answer requests
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._asked > self._done)
                if self._closed:
                    return
                asked = self._asked
            failed = False
            try:
                self._work()
                memory.give_back()
            except Exception:
                # The catalogue answers as before, only slower; the next change tries again.
                log.exception("the index could not be made anew")
                failed = True
            with self._changed:
                self._done = asked
                self._changed.notify_all()
                if failed:
                    self._changed.wait_for(lambda: self._closed, RETRY_S)

    def _work(self) -> None:
        while not self._closed and (snapshot := self._current()).overgrown:
            self._replace(snapshot.rebuilt())
            with self._changed:
                self._changed.notify_all()
        main = self._current().main
        fresh = int((main.versions > self._kept).sum())
        if len(main) < KEEP_FROM or fresh < KEEP_SHARE * len(main) or self._closed:
            return
        self._kept = int(main.versions.max())  # a failure, too, waits for as much more to change
        try:
            self._keep(main)
        except OSError as error:
            log.warning("the index is not kept on disk, and a start takes longer: %s", error)
