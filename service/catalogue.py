"""What a catalogue can do for requests, wherever it is held: service.store, or service.milvus."""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from service.errors import Unsupported
from service.filters import Filter
from service.index import Floats, Snapshot
from service.listing import Page
from service.progress import Progress
from service.rows import Entry, Outcome, Stored
from service.versions import ALWAYS, Condition

# What not every store can do: find items by words, draw all of them, write all of some items or
# none, have another bundle active, copy itself to a file, count attributes over all items.
Capability = Literal["words", "map", "atomic", "reindex", "backup", "attributes"]


class Stats(NamedTuple):
    """What the catalogue holds.

    Attributes:
        changes: how many it has had; the largest version. 0 where the store cannot tell.
        kinds: of each name and kind of an attribute, how many items have it; empty where the store
            cannot tell.
    """

    items: int
    hidden: int
    changes: int
    kinds: Mapping[tuple[str, str], int]


class Wanted(NamedTuple):
    """What an answer is chosen from.

    Attributes:
        queries: (W,) of views: the items nearest to each, by inner product. Without any, those
            that had most interactions in training.
        k: how many of them.
        exclude: ids of those that are not wanted.
        matching: only items that match.
        ids: items that are wanted whatever they match, the most wanted first.
        only: whether vectors of the views of `queries` alone will be looked at.
    """

    queries: Mapping[str, Floats]
    k: int
    exclude: Collection[str]
    matching: Filter | None
    ids: Sequence[str] = ()
    only: bool = False


class Items(Protocol):
    """Items as they are stored. Methods block and may be called from any thread."""

    def get(self, item_id: str) -> Stored | None:
        """The item of an id."""

    def get_many(self, item_ids: Sequence[str]) -> list[Stored | None]:
        """The items of ids, in their order; None where there is no such item."""

    def page(self, limit: int, cursor: str | None = None, query: str | None = None) -> Page:
        """Items from a cursor on, in an order that what comes or goes does not change.

        Args:
            query: words that the items have; see Capability.

        Raises:
            Invalid: the cursor is of another catalogue or other words, or there is no word.
            Unsupported: there is a query, and the store lacks `words`.
        """

    def export(self, at_once: int) -> Generator[Sequence[Stored], None, None]:
        """All items, some at once; may be asked from another thread each time."""


class Imports(Protocol):
    """How far imports have come."""

    def progress(self, import_id: str) -> Progress | None:
        """How far an import has come; None where it is not known."""

    def begin(self, import_id: str) -> Progress:
        """Remember an import, and how far it came before; what stopped it then is forgotten."""

    def end(self, import_id: str, error: str | None = None) -> Progress:
        """Note that an import was read to its end, or what is wrong with its next line."""


class Store(Protocol):
    """A catalogue, as requests use it. Methods block and may be called from any thread.

    What a write has changed is so for every reader when the method returns.
    """

    @property
    def filterable(self) -> Collection[str] | None:
        """The attributes that filters may name; None is all that items have."""

    @property
    def at_hand(self) -> bool:
        """Whether it only looks at this process' memory for what is asked most.

        That is `stats`, `filter_of`, `holding` and `widened`, which then need no thread.
        """

    @property
    def lacks(self) -> Mapping[Capability, str]:
        """What it cannot do, and of each a sentence that says what to do instead."""

    @property
    def items(self) -> Items:
        """As they are stored."""

    @property
    def imports(self) -> Imports:
        """How far they have come."""

    @property
    def stats(self) -> Stats:
        """What it holds."""

    def holding(self, item_ids: Iterable[str], /) -> Snapshot:
        """A part of the catalogue that has at least these items, of those that there are."""

    def widened(self, snapshot: Snapshot, wanted: Iterable[Wanted], /) -> Snapshot:
        """The same part, places and all, with at least what is wanted, of what there is."""

    def views_of(self, stored: Stored) -> list[str] | None:
        """The views of an item that `items` told; None where it has gone meanwhile."""

    def filter_of(self, told: object) -> Filter | None:
        """The filter in decoded JSON; None for null.

        Raises:
            Invalid: it is none, or names an attribute that nothing can be filtered by.
        """

    def put(
        self,
        entries: Sequence[Entry],
        conditions: Sequence[Condition] = (),
        *,
        atomic: bool = True,
        progress: tuple[str, int] | None = None,
    ) -> list[Outcome]:
        """Have items in the catalogue; see CatalogueStore.put."""

    def hide(self, item_id: str, hidden: bool, condition: Condition = ALWAYS) -> Outcome:
        """Keep an item out of all answers, or not; see CatalogueStore.hide."""

    def delete(self, item_id: str, condition: Condition = ALWAYS) -> bool:
        """Take an item out for good; whether it was there."""

    def hold_back(self, seconds: float) -> None:
        """Wait while it is far behind with what was written, for so long at most."""

    def leave(self) -> None:
        """Do nothing any more of one's own accord."""

    def close(self) -> None:
        """Let it go; it is not to be used any more."""


def require(store: Store, capability: Capability) -> None:
    """Make sure that a store can do something.

    Raises:
        Unsupported: it cannot.
    """
    if sentence := store.lacks.get(capability):
        raise Unsupported(sentence)
