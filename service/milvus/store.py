"""The catalogue store in Milvus: what several processes write and read together."""

import json
import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.item import Item
from service.catalogue import Capability, Stats, Wanted
from service.columns import KINDS, Columns, Filterable
from service.errors import Invalid, PreconditionFailed, Unreachable
from service.filters import Filter, HeldKind, parse
from service.index import Floats, Snapshot
from service.milvus.address import Address
from service.milvus.collection import (
    ATTRIBUTES,
    GIVEN,
    HIDDEN,
    ITEM,
    MOST_BYTES,
    SHOWN,
    has_field,
    imports_of,
    open_collection,
    row_of,
    vector_field,
)
from service.milvus.connection import Connection, Row, vector_in
from service.milvus.expressions import (
    KEY,
    VERSION,
    among,
    expression,
    has_kind,
    key_of,
    without,
)
from service.milvus.items import MOST_ROWS, MilvusImports, MilvusItems
from service.rows import Entry, Outcome, Stored, written
from service.schema import CatalogueError
from service.store import require_vectors
from service.versions import ALWAYS, Condition

if TYPE_CHECKING:
    from models.bundle import Bundle

log = logging.getLogger(__name__)

# Of each view of a history; twice as many as are arranged, where that is more.
CANDIDATES = 200
WIDER = 4  # times as many, where too few of what came match
KNOWN_S = 5.0  # for so long is believed which kinds of values there are
NAMED = 1000  # items of training whose attributes are named to who asks for one that is none

LACKS: Mapping[Capability, str] = MappingProxyType(
    {
        "words": "a catalogue in Milvus cannot be searched by words (q): list it without, and "
        "filter answers by attributes",
        "map": "a catalogue in Milvus is not drawn: a map would read all of it",
        "atomic": "a catalogue in Milvus has no transactions: send atomic: false, or one item at a "
        "time; the same again does no harm",
        "reindex": "a catalogue in Milvus changes its bundle by another service: start one with "
        "the new bundle on the same LLMEMB_STORE, import there what GET /items:export answers "
        "here, and send the requests to it",
        "backup": "a catalogue in Milvus is backed up by Milvus' own tools",
        "attributes": "attributes are not counted over a catalogue in Milvus",
    }
)


class _Held(NamedTuple):
    """An item as it stands there, or is to; without an entry all else stays as it is."""

    attributes: str
    hidden: bool
    version: int
    given: bool
    entry: Entry | None = None


class MilvusStore:
    """The catalogue of a bundle in Milvus; made by MilvusStore.open.

    A write is in Milvus when the method returns, and every process that reads sees it: all asks
    for strong consistency. Conditions hold among the writes of one process, for Milvus compares
    nothing before it writes; with several that write the last one wins.
    Methods block and may be called from any thread; they raise Unreachable where Milvus does not
    answer, and what they were to change is then so, or is not.

    Attributes:
        filterable: the attributes that filters may name; None is all that items have.
        items: as they are stored.
        imports: how far they have come.
        at_hand, lacks: as catalogue.Store has them.
    """

    at_hand = False
    lacks = LACKS

    def __init__(
        self,
        connection: Connection,
        collection: str,
        bundle: "Bundle",
        filterable: Collection[str] | None,
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._widths = {name: view.width for name, view in bundle.views.items()}
        self._llm_dim = bundle.manifest.llm_dim
        self.filterable = None if filterable is None else sorted(filterable)
        self.items = MilvusItems(connection, collection, list(self._widths), LACKS["words"])
        self.imports = MilvusImports(connection, imports_of(collection))
        self._lock = threading.Lock()  # of who reads what is there and then writes
        self._version = 0
        self._kinds: dict[str, tuple[float, frozenset[HeldKind]]] = {}
        self._names = {name for item in bundle.catalogue[:NAMED] for name in item.attributes}
        counts = bundle.interactions
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        self._popular = [key_of(bundle.catalogue[at].item_id) for at in order.tolist()]

    @classmethod
    def open(
        cls, address: Address, bundle: "Bundle", filterable: Collection[str] | None = None
    ) -> "MilvusStore":
        """The store at an address; a bundle that it does not know is seeded with its items.

        Raises:
            CatalogueError: Milvus cannot be reached or used, or has other vectors.
        """
        connection = Connection(address)
        try:
            collection = open_collection(connection, bundle)
            return cls(connection, collection, bundle, filterable)
        except Unreachable:
            connection.close()
            raise CatalogueError(
                f"Milvus at {connection.where} cannot be used: it does not answer as it should; "
                "the log says more"
            ) from None
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()

    def leave(self) -> None:
        """Do nothing: it does nothing of its own accord."""

    def hold_back(self, seconds: float) -> None:
        """Do not wait: Milvus answers a write when it has it."""

    # --- what there is ---

    @property
    def stats(self) -> Stats:
        """What it holds, counted by Milvus."""
        items = self._connection.count(self._collection, "")
        hidden = self._connection.count(self._collection, f"{SHOWN} == false") if items else 0
        return Stats(items, hidden, 0, {})

    def views_of(self, stored: Stored) -> list[str] | None:
        """The views of an item that was read."""
        return list(stored.views or ())

    def filter_of(self, told: object) -> Filter | None:
        """The filter in decoded JSON; None for null.

        Raises:
            Invalid: it is none, or names an attribute that nothing can be filtered by.
        """
        if told is None:
            return None
        return parse(told, Filterable(self.filterable, self._names, self._kinds_of))

    def _kinds_of(self, name: str) -> frozenset[HeldKind]:
        """Of which kinds items have values, as of a few seconds ago."""
        known = self._kinds.get(name)
        if known is None or time.monotonic() > known[0] + KNOWN_S:
            found = frozenset(
                kind
                for kind in KINDS
                if self._connection.rows(self._collection, has_kind(name, kind), [KEY], limit=1)
            )
            if not found:
                return found  # not kept: there is no end of such names
            known = self._kinds[name] = time.monotonic(), found
        return known[1]

    # --- reading ---

    def holding(self, item_ids: Iterable[str], /) -> Snapshot:
        """A part of the catalogue that has at least these items, of those that there are."""
        keys = [key_of(each) for each in dict.fromkeys(item_ids)]
        rows = self._rows(keys, self._widths, ATTRIBUTES)
        tables = {
            view: np.zeros((len(rows), width), np.float32) for view, width in self._widths.items()
        }
        present = {view: np.zeros(len(rows), bool) for view in self._widths}
        for at, row in enumerate(rows):
            for view in self._widths:
                if row[has_field(view)]:
                    tables[view][at] = row[vector_field(view)]
                    present[view][at] = True
        return Snapshot.of_tables(
            [str(row[ITEM]) for row in rows],
            tables,
            present,
            np.array([not row[SHOWN] for row in rows], bool),
            np.array([row[VERSION] for row in rows], np.int64),
            columns=Columns.of((json.loads(row[ATTRIBUTES]) for row in rows), self.filterable),
        )

    def widened(self, snapshot: Snapshot, wanted: Iterable[Wanted], /) -> Snapshot:
        """The same part, places and all, with at least what is wanted, of what there is.

        Where a search is not exact in Milvus, what is wanted is what it finds.
        """
        asked = list(wanted)
        filtered = any(each.matching is not None for each in asked)
        limits = [min(MOST_ROWS, max(CANDIDATES, 2 * each.k)) for each in asked]
        while asked:
            found = self._found(asked, limits)
            keys = {key for each in found for key in each}
            keys |= {key_of(each) for one in asked for each in one.ids[: max(CANDIDATES, one.k)]}
            only = all(each.only for each in asked)
            views = {view for each in asked for view in each.queries} if only else self._widths
            snapshot = self._with(snapshot, keys, views, filtered)
            # An expression may let some pass that do not match; see service.milvus.expressions.
            again = [
                at
                for at, each in enumerate(asked)
                if each.matching is not None
                and len(found[at]) >= limits[at]
                and limits[at] < MOST_ROWS
                and self._passing(snapshot, each, found[at]) < each.k
            ]
            asked = [asked[at] for at in again]
            limits = [min(MOST_ROWS, limits[at] * WIDER) for at in again]
        return snapshot

    def _found(self, asked: Sequence[Wanted], limits: Sequence[int]) -> list[set[str]]:
        """Of each what is wanted the keys of the items that Milvus thinks of."""
        found: list[set[str]] = [set() for _ in asked]
        together: dict[tuple[str, str, int], list[int]] = {}
        for at, (each, limit) in enumerate(zip(asked, limits, strict=True)):
            if not each.queries:
                found[at] = self._most_popular(each, limit)
            for view in each.queries:
                matching = self._expression(each, f"{has_field(view)} == true")
                together.setdefault((view, matching, limit), []).append(at)
        for (view, matching, limit), rows in together.items():
            queries = np.stack([asked[at].queries[view] for at in rows])
            hits = self._connection.nearest(
                self._collection, vector_field(view), queries, matching, limit
            )
            for at, keys in zip(rows, hits, strict=True):
                found[at].update(keys)
        return found

    def _most_popular(self, wanted: Wanted, limit: int) -> set[str]:
        """Keys of items with most interactions in training; then of any."""
        matching = self._expression(wanted)
        found: set[str] = set()
        start, size = 0, limit
        while start < len(self._popular):
            some = self._popular[start : start + size]
            start, size = start + size, min(MOST_ROWS, size * WIDER)  # where few match, few calls
            rows = self._connection.rows(self._collection, f"{among(some)} and {matching}", [KEY])
            found |= {str(row[KEY]) for row in rows}
            if len(found) >= limit:
                return found
        rows = self._connection.rows(self._collection, matching, [KEY], limit=limit)
        return found | {str(row[KEY]) for row in rows}

    def _expression(self, wanted: Wanted, *more: str) -> str:
        told = [] if wanted.matching is None else [expression(wanted.matching)]
        return without([*more, f"{SHOWN} == true", *told], map(key_of, wanted.exclude))

    def _passing(self, snapshot: Snapshot, wanted: Wanted, keys: Collection[str]) -> int:
        """How many of the items of some keys may be answered."""
        ids = (*snapshot.main.ids, *snapshot.recent.ids)
        places = snapshot.places(each for each in ids if key_of(each) in keys)
        may = snapshot.allowed(snapshot.places(wanted.exclude), wanted.matching)
        return int(may[places].sum())

    def _rows(self, keys: Iterable[str], views: Iterable[str], *more: str) -> list[Row]:
        """Rows of items, with some of their views, and more fields."""
        fields = [KEY, ITEM, SHOWN, VERSION, *more]
        fields += [field for view in views for field in (has_field(view), vector_field(view))]
        return list(self.items.rows_of(keys, fields).values())

    def _with(
        self, snapshot: Snapshot, keys: set[str], views: Collection[str], filtered: bool
    ) -> Snapshot:
        """A part with some more items, of which some views are known.

        Args:
            filtered: whether their attributes are looked at; else they need not come.
        """
        held = {key_of(each) for each in (*snapshot.main.ids, *snapshot.recent.ids)}
        rows = self._rows(sorted(keys - held), views, *([ATTRIBUTES] if filtered else []))
        if not rows:
            return snapshot
        upserts = {str(row[ITEM]): _views_in(row, views) for row in rows}
        return snapshot.with_changes(
            upserts,
            (),
            {str(row[ITEM]) for row in rows if not row[SHOWN]},
            {str(row[ITEM]): int(row[VERSION]) for row in rows},
            Columns.of(
                (json.loads(row[ATTRIBUTES]) if filtered else {} for row in rows), self.filterable
            ),
        )

    # --- writing ---

    def put(
        self,
        entries: Sequence[Entry],
        conditions: Sequence[Condition] = (),
        *,
        atomic: bool = True,
        progress: tuple[str, int] | None = None,
    ) -> list[Outcome]:
        """Have items in the catalogue; as CatalogueStore.put, but for one thing.

        Where Milvus fails in between, some may be there and others not.

        Raises:
            WrongVector: a vector has another width than its view, or is not finite.
            PreconditionFailed: a condition does not hold, and it is all or none.
            Invalid: an item is larger than Milvus has them.
        """
        for entry in entries:
            require_vectors(entry, self._widths, self._llm_dim)
            size = len(written(entry.item).encode())
            if size > MOST_BYTES:
                raise Invalid.field(
                    "attributes",
                    f"of item {entry.item.item_id!a} take {size} bytes; Milvus has room for "
                    f"{MOST_BYTES}",
                )
        with self._lock:
            held = self._held([entry.item.item_id for entry in entries])
            changed: dict[str, _Held] = {}
            outcomes = []
            for entry, condition in zip(
                entries, conditions or [ALWAYS] * len(entries), strict=True
            ):
                item_id = entry.item.item_id
                outcome, now = self._outcome(entry, condition, held.get(item_id))
                if outcome.refused and atomic:
                    raise PreconditionFailed(f"item {item_id!a} {outcome.refused}")
                outcomes.append(outcome)
                if now is not None:
                    held[item_id] = changed[item_id] = now
            self._write(changed)
            if progress:
                self.imports.advance(*progress, outcomes)
        return outcomes

    def hide(self, item_id: str, hidden: bool, condition: Condition = ALWAYS) -> Outcome:
        """Keep an item out of all answers, or not; it may still stand in histories.

        Raises:
            PreconditionFailed: the condition does not hold.
        """
        with self._lock:
            held = self._held([item_id]).get(item_id)
            if refused := condition.refusal(held and held.version):
                raise PreconditionFailed(f"item {item_id!a} {refused}")
            if held is None:
                return Outcome(False, False, None, False)
            if held.hidden == hidden:
                return Outcome(False, False, held.version, hidden)
            version = self._next_version(held.version)
            self._write({item_id: held._replace(hidden=hidden, version=version)})
            return Outcome(False, True, version, hidden)

    def delete(self, item_id: str, condition: Condition = ALWAYS) -> bool:
        """Take an item out for good; whether it was there.

        Raises:
            PreconditionFailed: it is there, and the condition does not hold.
        """
        with self._lock:
            held = self._held([item_id]).get(item_id)
            if held is None:
                return False
            if refused := condition.refusal(held.version):
                raise PreconditionFailed(f"item {item_id!a} {refused}")
            self._next_version(held.version)
            self._connection.delete(self._collection, among([key_of(item_id)]))
        return True

    def _held(self, item_ids: Sequence[str]) -> dict[str, _Held]:
        fields = [KEY, ITEM, ATTRIBUTES, HIDDEN, VERSION, GIVEN]
        rows = self.items.rows_of(map(key_of, item_ids), fields)
        return {
            str(row[ITEM]): _Held(
                str(row[ATTRIBUTES]), bool(row[HIDDEN]), int(row[VERSION]), bool(row[GIVEN])
            )
            for row in rows.values()
        }

    def _outcome(
        self, entry: Entry, condition: Condition, held: _Held | None
    ) -> tuple[Outcome, _Held | None]:
        """What becomes of one write, and what the item is then, if it changes."""
        refused = condition.refusal(held and held.version)
        if held is None:
            if refused:
                return Outcome(False, False, None, False, refused), None
            hidden, version = bool(entry.hidden), self._next_version(0)
            now = _Held(written(entry.item), hidden, version, entry.given, entry)
            return Outcome(True, True, version, hidden), now
        if refused:
            return Outcome(False, False, held.version, held.hidden, refused), None
        hidden = held.hidden if entry.hidden is None else entry.hidden
        same = held.attributes == written(entry.item) and held.given == entry.given
        if same and entry.given:
            same = self._has(entry, held)
        if same and hidden == held.hidden:
            return Outcome(False, False, held.version, hidden), None
        version = self._next_version(held.version)
        if same:
            now = held._replace(hidden=hidden, version=version)
        else:
            now = _Held(written(entry.item), hidden, version, entry.given, entry)
        return Outcome(False, True, version, hidden, kept=same), now

    def _has(self, entry: Entry, held: _Held) -> bool:
        """Whether exactly an entry's views are there."""
        views: Mapping[str, Floats] = {}
        if held.entry:
            views = held.entry.views
        else:
            for row in self._rows([key_of(entry.item.item_id)], self._widths):
                views = _views_in(row, self._widths)
        return views.keys() == entry.views.keys() and all(
            np.array_equal(views[view], entry.views[view]) for view in views
        )

    def _write(self, changed: Mapping[str, _Held]) -> None:
        """Have items so; those without an entry keep all else that they have."""
        kept = [key_of(each) for each, now in changed.items() if now.entry is None]
        rows = self._rows(kept, self._widths, ATTRIBUTES, GIVEN)
        there = {str(row[ITEM]): row for row in rows}
        self._connection.upsert(self._collection, self._new_rows(changed, there))

    def _new_rows(self, changed: Mapping[str, _Held], there: Mapping[str, Row]) -> Iterator[Row]:
        for item_id, now in changed.items():
            entry = now.entry
            if entry is None:
                # As it is by now: another process may have written it, or taken it out.
                row = there.get(item_id)
                if row is None:
                    continue
                attributes = json.loads(row[ATTRIBUTES])
                item = Item.model_construct(item_id=item_id, attributes=attributes)
                entry = Entry(item, None, _views_in(row, self._widths), given=bool(row[GIVEN]))
            yield row_of(entry, self._widths, now.version, now.hidden, entry.views)

    def _next_version(self, before: int) -> int:
        """One that no item of this catalogue has had: microseconds, which no clock takes back."""
        self._version = max(self._version + 1, before + 1, time.time_ns() // 1000)
        return self._version


def _views_in(row: Row, views: Iterable[str]) -> dict[str, Floats]:
    """Of some views those vectors that an item has."""
    return {view: vector_in(row, vector_field(view)) for view in views if row[has_field(view)]}
