"""The catalogue store: items and vectors in SQLite, and the index over them, kept in step."""

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from service import generations
from service.beside import Known, active, seeing
from service.catalogue import Capability, Stats, Store, Wanted
from service.columns import Columns, Filterable
from service.errors import PreconditionFailed, StorageFull, Superseded
from service.filters import Filter, parse
from service.generations import Of
from service.index import Main, Rebuilt, Snapshot
from service.listing import SOME, Listing, stored_in
from service.opening import damaged, prepare, read_snapshot, take
from service.progress import Imports
from service.rows import Entry, Floats, Outcome, Stored, Writing
from service.schema import FILE, CatalogueError, is_full, transaction
from service.upkeep import Upkeep
from service.versions import ALWAYS, Condition

if TYPE_CHECKING:
    from models.bundle import Bundle


class WrongVector(ValueError):
    """A vector that must not enter the catalogue; the message names view, item and defect."""


class _State(NamedTuple):
    snapshot: Snapshot
    changes: int
    kinds: Mapping[tuple[str, str], int]


class CatalogueStore:
    """Every item of the catalogue, durably, on this disk; made by CatalogueStore.open.

    A change is committed (WAL, synchronous=FULL) before the method returns and visible in
    `snapshot` when it does; the index changes in the order of the commits. Methods block and
    may be called from any thread.
    `snapshot` is to be read once for each request.

    Attributes:
        filterable: the attributes that filters may name; None is all that items have.
        items: as they are stored.
        imports: how far they have come.
        at_hand, lacks: as catalogue.Store has them.
    """

    at_hand = True
    lacks: Mapping[Capability, str] = MappingProxyType({})

    def __init__(
        self,
        database: sqlite3.Connection,
        path: Path,
        lock: IO[bytes],
        of: Of,
        llm_dim: int,
        snapshot: Snapshot,
        kept: int,
        lock_of: "CatalogueStore | None" = None,
    ) -> None:
        self._database = database
        self._path = path
        self._lock_file = lock
        self._widths = dict(of.widths)
        self._llm_dim = llm_dim
        self.filterable = of.filterable
        # Of all stores of this database; its holder may write, and then be looked after by another.
        self._lock: threading.RLock = lock_of._lock if lock_of else threading.RLock()
        self.imports = Imports(database, self._lock)
        self._superseded = False
        self._gone: set[str] | None = None  # ids taken out, while somebody wants to know
        with self._lock:
            meta = dict(database.execute("SELECT key, value FROM meta"))
            kinds = database.execute("SELECT name, kind, items FROM attribute_kinds").fetchall()
        self.items: Listing = lock_of.items if lock_of else Listing(path, meta["catalogue_id"])
        # Of one moment: replaced as a whole, and read without the lock.
        self._state = _State(
            snapshot, int(meta["changes"]), {(name, kind): items for name, kind, items in kinds}
        )
        self._of = of
        self._keeping: threading.Lock = lock_of._keeping if lock_of else threading.Lock()
        self._upkeep: Upkeep | None = None
        self._kept = kept
        if lock_of is None:
            self.keep_up()

    @property
    def snapshot(self) -> Snapshot:
        """The index as of the latest change."""
        return self._state.snapshot

    @classmethod
    def open(
        cls,
        folder: Path,
        bundle: "Bundle",
        filterable: Collection[str] | None = None,
        *,
        quantised: bool = False,
    ) -> "CatalogueStore":
        """The store in a folder; a new one is seeded with the bundle's items, once and whole.

        Args:
            filterable: the attributes that filters may name; None is all that items have.
            quantised: see service.vectors.vectors_of.

        Raises:
            CatalogueError: another process has it open, or it belongs to another bundle or a
                newer version, or it is damaged, or the folder cannot be written.
        """
        lock = take(folder)
        path = folder / FILE
        database: sqlite3.Connection | None = None
        try:
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            widths = {name: view.width for name, view in bundle.views.items()}
            prepare(database, path, bundle)
            meta = dict(database.execute("SELECT key, value FROM meta"))
            generations.clean(folder, int(meta["changes"]))
            making = active(database).making
            names = None if filterable is None else sorted(filterable)
            of = Of(meta["catalogue_id"], bundle.bundle_hash, making, quantised, widths, names)
            snapshot, kept = read_snapshot(database, path, of)
            return cls(database, path, lock, of, bundle.manifest.llm_dim, snapshot, kept)
        except StorageFull:
            _close(database, lock)
            raise CatalogueError(f"there is no room on the disk for {path}") from None
        except (sqlite3.Error, KeyError) as error:
            _close(database, lock)
            if isinstance(error, sqlite3.Error) and is_full(error):
                raise CatalogueError(f"there is no room on the disk for {path}") from None
            raise damaged(path, str(error)) from None
        except BaseException:
            _close(database, lock)
            raise

    def keep_up(self) -> None:
        """Keep the index in shape from now on; a store beside another one leaves that be."""
        self._upkeep = Upkeep(lambda: self._state.snapshot, self._lay_over, self._keep, self._kept)

    def _keep(self, main: Main) -> None:
        """Write a generation, unless another store's are wanted; one at a time."""
        with self._keeping:
            if not self._superseded:
                generations.write(self._path.parent, main, self._of)

    def _look(self) -> None:
        if self._upkeep:
            self._upkeep.look()

    def leave(self) -> None:
        """Do nothing any more of one's own accord; another store has the folder."""
        if self._upkeep:
            self._upkeep.close()

    def close(self) -> None:
        """Let the folder go; the store is not to be used any more."""
        self.leave()
        self.items.close()  # first: whoever closes last tidies the write-ahead log up
        # An index that is being written has the folder until it is.
        with self._keeping, self._lock:
            self._superseded = True
            _close(self._database, self._lock_file)

    @contextmanager
    def locked(self) -> Iterator[sqlite3.Connection]:
        """The database, while nobody else reads or writes it."""
        with self._lock:
            yield self._database

    def taken_out(self) -> set[str]:
        """Ids of items that were taken out since this was last asked; from the first time on."""
        with self._lock:
            gone, self._gone = self._gone, set()
        return gone or set()

    def forget_taken_out(self) -> None:
        """Nobody wants to know any more who is taken out."""
        with self._lock:
            self._gone = None

    @contextmanager
    def reading(self, known: Known) -> Iterator[sqlite3.Connection]:
        """The database at one moment as far as a bundle has been told; others go on writing."""
        with closing(seeing(self._path, known)) as database:
            yield database

    def beside(self, bundle: "Bundle", known: Known, pause: Callable[[], None]) -> "CatalogueStore":
        """The same catalogue in the vectors of another bundle, as far as that has been told of it.

        What changes after that (behind `Known.position`, and `taken_out` of this store) is to be
        told to the new store by `follow`, until this one gives way to it.

        Args:
            pause: is called now and then, with nothing locked; may raise, and that is the end.

        Raises:
            CatalogueError: a stored vector is not what its view has.
        """
        widths = {name: view.width for name, view in bundle.views.items()}
        of = self._of._replace(bundle=bundle.bundle_hash, making=known.making, widths=widths)
        self.taken_out()
        with self.reading(known) as database:
            snapshot, kept = read_snapshot(database, self._path, of, pause)
        return CatalogueStore(
            *(self._database, self._path, self._lock_file, of, bundle.manifest.llm_dim),
            *(snapshot, kept),
            lock_of=self,
        )

    def follow(
        self,
        upserts: Mapping[str, Mapping[str, Floats]],
        deletes: Collection[str],
        hidden: Collection[str],
        versions: Mapping[str, int],
        attributes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Have in the index what another store of the database has committed.

        Args:
            versions, attributes: of `upserts`.
        """
        with self._lock:
            columns = Columns.of((attributes[each] for each in upserts), self.filterable)
            hidden = {*hidden, *_unseen(upserts)}
            snapshot = self.snapshot.with_changes(upserts, deletes, hidden, versions, columns)
            self._state = self._state._replace(snapshot=snapshot)

    def give_way(self, other: "CatalogueStore") -> None:
        """Have another store of the database, which has followed all, take this one's place.

        To be called with the database locked, and its active bundle changed. Who still holds this
        one can read on, as of now; what it would write is refused with Superseded. The other one is
        to `keep_up`.
        """
        self._superseded, self._gone = True, None
        other._state = self._state._replace(snapshot=other.snapshot)

    def _require_current(self) -> None:
        if self._superseded:
            raise Superseded(
                "another bundle has become active meanwhile; send the request again",
                retry_after_s=1,
            )

    def holding(self, _: Iterable[str]) -> Snapshot:
        """All of the catalogue, as of the latest change."""
        return self._state.snapshot

    def widened(self, snapshot: Snapshot, _: Iterable[Wanted]) -> Snapshot:
        """The same: it has all."""
        return snapshot

    def views_of(self, stored: Stored) -> list[str] | None:
        """The views of an item that was read; None where it has gone meanwhile."""
        views = self._state.snapshot.views(stored.item.item_id)
        return None if views is None else list(views)

    @property
    def stats(self) -> Stats:
        """What it holds; costs nothing."""
        snapshot, changes, kinds = self._state
        return Stats(len(snapshot), len(snapshot) - snapshot.shown, changes, kinds)

    def filter_of(self, told: object) -> Filter | None:
        """The filter in decoded JSON; None for null.

        Raises:
            Invalid: it is none, or names an attribute that nothing can be filtered by.
        """
        if told is None:
            return None
        snapshot, _, kinds = self._state
        known = {name for name, _ in kinds}
        return parse(told, Filterable(self.filterable, known, snapshot.kinds))

    def put(
        self,
        entries: Sequence[Entry],
        conditions: Sequence[Condition] = (),
        *,
        atomic: bool = True,
        progress: tuple[str, int] | None = None,
    ) -> list[Outcome]:
        """Have items in the catalogue, in one transaction: all or, on any error, none.

        An item that stands there so already is left as it is. Of an id that comes twice the
        later one stays.

        Args:
            conditions: of each entry; none asks for nothing.
            atomic: whether a condition that does not hold is an error; else the others are done.
            progress: an import, and its line that is durable with this.

        Raises:
            WrongVector: a vector has another width than its view, or is not finite.
            PreconditionFailed: a condition does not hold, and it is all or none.
            StorageFull: the disk is full.
        """
        for entry in entries:
            require_vectors(entry, self._widths, self._llm_dim)
        outcomes = []
        upserts: dict[str, Mapping[str, Floats]] = {}
        attributes: dict[str, Mapping[str, Any]] = {}
        hidden: set[str] = set()
        versions: dict[str, int] = {}
        with self._lock:
            with self._writing() as writing:
                for entry, condition in zip(
                    entries, conditions or [ALWAYS] * len(entries), strict=True
                ):
                    outcome = writing.put(entry, condition)
                    item_id = entry.item.item_id
                    if outcome.refused and atomic:
                        raise PreconditionFailed(f"item {item_id!a} {outcome.refused}")
                    outcomes.append(outcome)
                    if outcome.changed:
                        if not outcome.kept:
                            upserts[item_id] = entry.views
                        elif item_id not in upserts:
                            upserts[item_id] = self.snapshot.views(item_id) or {}
                        attributes[item_id] = entry.item.attributes
                        versions[item_id] = outcome.version or 0
                        (hidden.add if outcome.hidden else hidden.discard)(item_id)
                if progress:
                    self.imports.advance(*progress, outcomes)
                state = self._next(writing, upserts, (), hidden, versions, attributes)
            self._state = state
        self._look()
        return outcomes

    def hide(self, item_id: str, hidden: bool, condition: Condition = ALWAYS) -> Outcome:
        """Keep an item out of all answers, or not; it may still stand in histories.

        Returns:
            What became of it; its version is None where there is no such item.

        Raises:
            PreconditionFailed: the condition does not hold.
            StorageFull: the disk is full.
        """
        with self._lock:
            with self._writing() as writing:
                outcome = writing.hide(item_id, hidden, condition)
                if outcome.refused:
                    raise PreconditionFailed(f"item {item_id!a} {outcome.refused}")
                rows = self._database.execute(SOME, [json.dumps([item_id])]).fetchall()
                attributes = {row[0]: stored_in(row).item.attributes for row in rows}
                views = (self.snapshot.views(item_id) or {}) if outcome.changed else None
                shown = {} if views is None else {item_id: views}
                versions = {item_id: outcome.version or 0}
                hiding = {item_id} if hidden else ()
                state = self._next(writing, shown, (), hiding, versions, attributes)
            self._state = state
        self._look()
        return outcome

    def delete(self, item_id: str, condition: Condition = ALWAYS) -> bool:
        """Take an item out for good; whether it was there.

        Raises:
            PreconditionFailed: it is there, and the condition does not hold.
            StorageFull: the disk is full.
        """
        with self._lock:
            self._require_current()
            if item_id not in self.snapshot:
                return False
            with self._writing() as writing:
                outcome = writing.delete(item_id, condition)
                if outcome.refused:
                    raise PreconditionFailed(f"item {item_id!a} {outcome.refused}")
                state = self._next(writing, {}, [item_id])
            self._state = state
            if self._gone is not None:
                self._gone.add(item_id)
        self._look()
        return True

    @contextmanager
    def _writing(self) -> Iterator[Writing]:
        """One transaction of changes; what it did is to be published after it.

        Raises:
            Superseded: the vectors of this store's bundle are not served any more.
        """
        self._require_current()
        with transaction(self._database):
            writing = Writing(self._database, self._state.changes)
            yield writing
            writing.finish()

    def _next(
        self,
        writing: Writing,
        upserts: Mapping[str, Mapping[str, Floats]],
        deletes: Sequence[str],
        hidden: Collection[str] = (),
        versions: Mapping[str, int] | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> _State:
        """What is so after a transaction, made within it: who fails here has written nothing.

        Args:
            versions, attributes: of `upserts`.
        """
        snapshot, _, kinds = self._state
        if upserts or deletes:
            told = attributes or {}
            columns = Columns.of((told[each] for each in upserts), self.filterable)
            hidden = {*hidden, *_unseen(upserts)}
            snapshot = snapshot.with_changes(upserts, deletes, hidden, versions, columns)
        counts = Counter(kinds)
        counts.update(writing.kinds)
        kinds = {each: items for each, items in counts.items() if items}
        return _State(snapshot, writing.changes, kinds)

    def _lay_over(self, rebuilt: Rebuilt) -> None:
        """Go on with a new main block."""
        with self._lock:
            self._state = self._state._replace(snapshot=self._state.snapshot.on(rebuilt))

    def hold_back(self, seconds: float) -> None:
        """Wait while the index is far behind, for so long at most.

        For who writes a lot, between two writes and without holding anybody else up.
        """
        if self._upkeep:
            self._upkeep.hold_back(seconds)

    def settle(self) -> None:
        """Wait until the index is in the shape that it is to have after the changes so far."""
        if self._upkeep:
            self._upkeep.settle()


def on_this_disk(store: Store) -> CatalogueStore:
    """A store, for what only those can do that lack nothing."""
    assert isinstance(store, CatalogueStore)  # noqa: S101 - the others lack `reindex`
    return store


def require_vectors(entry: Entry, widths: Mapping[str, int], llm_dim: int) -> None:
    """Make sure that the vectors of an entry are as their views have them.

    Raises:
        WrongVector: one is not.
    """
    vectors = dict(entry.views)
    if entry.llm_vector is not None:
        vectors["llm"] = entry.llm_vector
        widths = {**widths, "llm": llm_dim}
    for view, vector in vectors.items():
        if view not in widths:
            raise WrongVector(f"item {entry.item.item_id!r}: there is no view {view!r}")
        if vector.shape != (widths[view],):
            raise WrongVector(
                f"item {entry.item.item_id!r}: a vector of view {view!r} has shape "
                f"{vector.shape}, not ({widths[view]},)"
            )
        if not np.isfinite(vector).all():
            raise WrongVector(
                f"item {entry.item.item_id!r}: the vector of view {view!r} is not finite"
            )


def _unseen(items: Mapping[str, Mapping[str, Floats]]) -> list[str]:
    """Who has no view, and so nothing to be ranked by."""
    return [item_id for item_id, views in items.items() if not views]


def _close(database: sqlite3.Connection | None, lock: IO[bytes]) -> None:
    if database:
        database.close()
    lock.close()  # and with it the flock
