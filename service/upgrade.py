"""Another bundle in the place of the one that is served, while that is served.

A thread tells the new bundle of every item, oldest change first, in small batches: vectors are
stored beside those of the served bundle, a commit a round, so that a kill loses a round. Then the
index is built beside the other, both are compared, what has changed meanwhile is told, and, with
the catalogue locked, one commit makes the new bundle the active one and one assignment gives the
next request its parts.
"""

import asyncio
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from service import beside
from service.beside import Known, Made
from service.comparison import SAMPLE, Bundled, Comparison, compare
from service.errors import Overloaded, StorageFull, UnknownItem
from service.maker import Maker
from service.pace import Pace, yielding
from service.schema import CatalogueError, transaction
from service.seal import sealed
from service.serving import DRAINING, Parts, Serving, check_encoder
from service.store import CatalogueStore, on_this_disk

if TYPE_CHECKING:
    from models.bundle import Bundle

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal[
    "loading",
    "embedding",
    "indexing",
    "comparing",
    "flipping",
    "flipped",
    "held",
    "cancelled",
    "failed",
]
OVER = frozenset({"flipped", "held", "cancelled", "failed"})
ROUND = 64  # items of a commit
COUNT_S = 1.0  # between two counts of what is left
CLOSE = 32  # changes that may be told with the catalogue locked; writes wait for it
CATCHING_UP = 50  # rounds before that, at most
SHOWN_LOST = 100  # ids
# Items of a sample that is the same each time, and from all over the catalogue.
SAMPLED = (
    "SELECT item_id FROM items WHERE hidden = 0 "
    "ORDER BY ((row & 2147483647) * 2654435761) % 4294967296 LIMIT ?"
)


class Progress(NamedTuple):
    """How far an upgrade has come.

    Attributes:
        told: items that the bundle has been told of, those of earlier attempts too.
        left: those that it has not.
        lost: items of which the bundle can make no vector, and the ids of some.
        given: items that came with vectors of their own, in whose place the bundle has what it
            makes of their attributes.
        error: why it failed, or why it is held.
    """

    state: State
    told: int = 0
    left: int = 0
    lost: int = 0
    lost_ids: Sequence[str] = ()
    given: int = 0
    bundle_hash: str | None = None
    encoder_hash: str | None = None
    comparison: Comparison | None = None
    error: str | None = None


class _Cancelled(Exception):
    """Somebody wants it to stop."""


class _Held(Exception):
    """It is ready and not to be made active; says why."""


@dataclass
class _Target:
    """The bundle that is made ready, and what there is of it."""

    bundle: "Bundle"
    known: Known
    maker: Maker
    pace: Pace
    store: CatalogueStore | None = None
    parts: Parts | None = None
    lost: set[str] = field(default_factory=set)


class Upgrade:
    """One attempt to have another bundle active; `start` it once.

    Args:
        name: what the bundle is called in messages.
        folder: where it lies.
        back: whether it was active before, and there is nothing to compare.
        flip: whether to have it active; else it is made ready, compared and held.
        accept_lost: whether items of which it can make no vector may go unseen.
        loop: the service's event loop.
    """

    def __init__(
        self,
        serving: Serving,
        name: str,
        folder: Path,
        *,
        back: bool,
        flip: bool,
        accept_lost: bool,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self._serving = serving
        self._folder = folder
        self._back = back
        self._flip_wanted = flip
        self._accept_lost = accept_lost
        self._loop = loop
        self._served = serving.parts
        self._store = on_this_disk(self._served.store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upgrade", daemon=True)
        self._counted = 0.0
        self._parity = 1.0
        self.progress = Progress("loading")

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.progress.state not in OVER

    def start(self) -> None:
        """Begin, on a thread of its own."""
        self._thread.start()

    def cancel(self) -> None:
        """Have it stop soon; what it has stored stays, for the next attempt."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(seconds)

    def _tell(self, **fields: Any) -> None:  # noqa: ANN401 - Progress's own
        self.progress = self.progress._replace(**fields)

    def _check(self) -> None:
        if self._stop.is_set() or self._serving.phase == DRAINING:
            raise _Cancelled

    def _run(self) -> None:
        from models.bundle import BundleError  # noqa: PLC0415 - torch comes with it
        from models.llm import LLMError  # noqa: PLC0415

        target: _Target | None = None
        try:
            with yielding():
                _leave_cores()
                target = self._open()
                if target is None:
                    self._tell(state="flipped")  # long ago
                    return
                self._make_ready(target)
                self._flip(target)
        except _Cancelled:
            self._tell(state="cancelled")
            log.info("reindex cancelled", extra={"bundle_name": self.name})
        except _Held as reason:
            self._tell(state="held", error=str(reason))
            log.info("reindex held", extra={"bundle_name": self.name})
        except (BundleError, LLMError, CatalogueError, StorageFull, OSError, MemoryError) as error:
            self._fail(str(error) or type(error).__name__)
        except Exception as error:
            log.exception("reindex failed")
            self._fail(f"{type(error).__name__}; the log says more")
        finally:
            self._serving.metrics.reindex_left.set(0)
            if self.progress.state != "flipped":
                self._store.forget_taken_out()
                if target and target.parts:
                    self._start(self._serving.let_go(target.parts))
            # Who asks how it went must not keep a bundle in memory.
            del self._served, self._store

    def _fail(self, reason: str) -> None:
        self._tell(state="failed", error=reason)
        log.error("reindex failed: %s", reason, extra={"bundle_name": self.name})

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something done by the event loop, and do not wait."""
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # it is closed
            work.close()

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What the event loop answers."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return future.result(timeout=0.2)
            except CancelledError:  # the service is at its end
                raise _Cancelled from None
            except TimeoutError:
                if future.done():
                    continue  # just now
                if self._stop.is_set():
                    future.cancel()
                    raise _Cancelled from None

    def _open(self) -> _Target | None:
        """The bundle, checked and known to the catalogue; None if it is active."""
        from models.bundle import Bundle  # noqa: PLC0415 - torch comes with it

        settings = self._serving.settings
        bundle = Bundle.open(self._folder, llm=settings.llm, dtype=settings.dtype)
        self._tell(bundle_hash=bundle.bundle_hash, encoder_hash=bundle.encoder_hash)
        if bundle.bundle_hash == self._served.bundle.bundle_hash:
            return None
        self._check()
        self._parity = check_encoder(bundle)
        batcher = self._served.batcher
        admission = self._serving.admission
        pace = Pace(
            *(lambda: admission.busy, lambda: not batcher.idle, self._check),
            lambda: admission.answering,
        )
        with self._store.locked() as database:
            known = beside.find(database, bundle.bundle_hash)
            if known and known.encoder_hash != bundle.encoder_hash:
                known = None  # its LLM has run in another dtype since
            back = beside.find(database, beside.previous(database) or "")
            if back and back.bundle_hash == bundle.bundle_hash:
                back = known  # not kept where its vectors are of another dtype
            keep = [each for each in (beside.active(database), known, back) if each]
        self._drop_all_but(keep, pace)  # what was never finished
        if known is None:
            with self._store.locked() as database, transaction(database):
                known = beside.add(database, bundle.bundle_hash, bundle.encoder_hash)
        return _Target(bundle, known, Maker(bundle, self._serving.metrics.reindexed, pace), pace)

    def _drop_all_but(self, keep: Sequence[Known], pace: Pace) -> None:
        with self._store.locked() as database, transaction(database):
            beside.distrust(database, [each.number for each in keep])
        more = True
        while more:
            pace.let_others_first()
            with self._store.locked() as database, transaction(database):
                more = beside.drop_some(database, keep)

    def _make_ready(self, target: _Target) -> None:
        """Tell the bundle of all items, build its index, and compare it."""
        self._tell(state="embedding")
        self._count(target)
        while self._round(target):
            pass
        self._tell(state="indexing")
        self._check()
        store = target.store = self._store.beside(
            target.bundle, target.known, target.pace.let_others_first
        )
        target.parts = self._serving.assemble(
            target.bundle, store, self._parity, beside=self._served
        )
        while self._round(target):
            pass
        self._look_for_lost(target)
        if not self._back:
            self._tell(state="comparing")
            self._tell(comparison=self._compared(target, target.parts))
        if not self._flip_wanted:
            raise _Held("it is ready, and was not to be made active")
        self._refuse_loss(target)

    def _refuse_loss(self, target: _Target) -> None:
        if target.lost and not self._accept_lost:
            raise _Held(
                f"the bundle can make no vector of {len(target.lost)} items, which would not be "
                "recommended any more; change their attributes, or accept that they are lost"
            )

    def _flip(self, target: _Target) -> None:
        assert target.store and target.parts  # noqa: S101 - it is ready
        self._tell(state="flipping")
        with self._imports_waiting():
            for _ in range(CATCHING_UP):
                if self._count(target) <= CLOSE:
                    break
                self._round(target, urgent=True)
            else:
                raise _Held(
                    "the catalogue changes faster than the bundle can be told; have fewer changes "
                    "and ask again"
                )
            with self._store.locked() as database:
                while self._round(target, urgent=True):
                    pass
                self._refuse_loss(target)
                self._check()
                before = beside.active(database)
                with transaction(database):
                    beside.activate(database, target.known)
                self._store.give_way(target.store)
                self._serving.serve(target.parts)
                # From here on it is active, whatever happens.
                keep_up, target.parts = target.store.keep_up, None
        with suppress(RuntimeError):  # the loop is closed
            # By another thread, whose priority its own will have.
            self._loop.call_soon_threadsafe(keep_up)
        self._start(self._serving.let_retired_go())
        try:
            # What was kept to go back to until now.
            self._drop_all_but([target.known, before], target.pace)
        except (_Cancelled, StorageFull, sqlite3.Error):
            log.warning("vectors of an older bundle are dropped when the next one is made ready")
        self._tell(state="flipped", left=0)
        log.info(
            "another bundle is active",
            extra={"bundle_name": self.name, "bundle": target.bundle.bundle_hash},
        )

    @contextmanager
    def _imports_waiting(self) -> Iterator[None]:
        """Imports ask the LLM for nothing meanwhile; they would run ahead of us."""
        taken, over = threading.Event(), asyncio.Event()

        async def hold() -> None:
            async with self._serving.import_turn:
                taken.set()
                await over.wait()

        self._start(hold())
        try:
            while not taken.wait(0.1):
                self._check()
            yield
        finally:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(over.set)

    # --- one round --------------------------------------------------------------------------

    def _count(self, target: _Target, told: int | None = None) -> int:
        """How many items are left; also told to who asks.

        Args:
            told: a guess will do, for so many have been told since the last time.
        """
        now = time.monotonic()
        if told is not None and now - self._counted < COUNT_S:
            left = max(0, self.progress.left - told)
        else:
            with self._store.locked() as database:
                left = beside.left(database, target.known)
            self._counted = now
        self._tell(told=max(0, self._store.stats.items - left), left=left)
        self._serving.metrics.reindex_left.set(left)
        return left

    def _round(self, target: _Target, urgent: bool = False) -> bool:
        """Tell the bundle of the next items; whether there were any.

        Args:
            urgent: whether not to wait for others.
        """
        self._check()
        if not urgent:
            target.pace.let_others_first()
        with self._store.locked() as database:
            stale = beside.stale(database, target.known, ROUND)
            gone = self._store.taken_out() if target.store else set()
        if not stale and not gone:
            return False
        made = target.maker.made(stale, urgent)
        if not urgent:
            target.pace.let_others_first()
        if stale:
            with self._store.locked() as database, transaction(database):
                fresh = [
                    Made(each.row, each.version, {v: sealed(x) for v, x in views.items()}, llm)
                    for each, (views, llm) in zip(stale, made, strict=True)
                ]
                target.known = beside.write(database, target.known, fresh, stale[-1].version)
        if target.store:
            target.store.follow(
                {each.item_id: views for each, (views, _) in zip(stale, made, strict=True)},
                gone,
                [each.item_id for each in stale if each.hidden],
                {each.item_id: each.version for each in stale},
                {each.item_id: json.loads(each.attributes) for each in stale},
            )
        target.lost -= gone
        for each, (views, _) in zip(stale, made, strict=True):
            (target.lost.discard if views else target.lost.add)(each.item_id)
        self._show_lost(target)
        self._count(target, len(stale))
        return True

    # --- what is told before the flip -------------------------------------------------------

    def _look_for_lost(self, target: _Target) -> None:
        """Whom the bundle has no vector of, those of earlier attempts too."""
        with self._store.reading(target.known) as database:
            target.lost = set(beside.lacking(database, target.known))
            (given,) = database.execute("SELECT count(*) FROM items WHERE given").fetchone()
        self._tell(given=0 if self._back else given)
        self._show_lost(target)

    def _show_lost(self, target: _Target) -> None:
        self._tell(lost=len(target.lost), lost_ids=sorted(target.lost)[:SHOWN_LOST])

    def _compared(self, target: _Target, parts: Parts) -> Comparison:
        with self._store.reading(target.known) as database:
            sample = [each for (each,) in database.execute(SAMPLED, [SAMPLE])]
        served, other = (self._bundled(each, target.pace) for each in (self._served, parts))
        return compare(sample, served, other, self._parity, target.pace.let_others_first)

    def _bundled(self, parts: Parts, pace: Pace) -> Bundled:
        async def recommended(history: Sequence[str], k: int) -> list[tuple[str, float]]:
            while True:
                try:
                    return (await parts.recommender.recommend(history, k, [], True)).items
                except UnknownItem:
                    return []
                except Overloaded as error:
                    await asyncio.sleep(error.retry_after_s or 1)

        def recommend(history: Sequence[str], k: int) -> list[tuple[str, float]]:
            pace.let_others_first()
            return self._ask(recommended(history, k))

        return Bundled(parts.store.holding(()), parts.recommender.alike, recommend)


def _leave_cores() -> None:
    """Leave some of the cores to the LLM that is served.

    No lower priority, though: while such a thread waits for the processor it holds the interpreter,
    and everybody with it.
    """
    from models.bundle import use_threads  # noqa: PLC0415 - torch comes with it

    use_threads(max(1, (os.cpu_count() or 1) // 2))
