"""A file of items on its way into the catalogue: line by line, a commit a chunk."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from pydantic import Field

from service.catalogue import Store
from service.errors import Invalid, Malformed, NotReady, Overloaded
from service.incoming import IncomingItem, Readying, checked, require_bundle
from service.progress import Progress
from service.requests import decode
from service.rows import Entry, written

T = TypeVar("T")
CHUNK_LINES = 256  # a commit costs a fsync, and no line is durable before it
CHUNK_BYTES = 2**20
# Of attributes that are put before the LLM at once: others are to be heard meanwhile, and what
# waits for it is bounded (LLMEMB_MAX_QUEUE_TOKENS).
ASKED_BYTES = 4096
ASKED_ITEMS = 64
HELD_BACK_S = 5.0  # after a chunk, at most, while the index is far behind
LONGEST_WAIT_S = 5.0  # for a place in the LLM's queue, before it is asked for again


class ImportLine(IncomingItem):
    """A line of an import: an item, as GET /items:export writes it too."""

    version: int | None = Field(None, description="As an export tells it; not looked at.")


class Into(NamedTuple):
    """Where items go, and what makes entries of them, for one bundle."""

    store: Store
    readying: Readying
    bundle_hash: str


class _Line(NamedTuple):
    number: int
    content: bytes


class _Broken(NamedTuple):
    number: int
    error: Invalid


class Importing:
    """One import; to be fed from one task.

    Memory is bounded by a chunk and a line. The next piece is not to be fed before the last one
    was taken, which is how the client is held back.

    Args:
        progress: how far it came before; lines up to there are passed over.
        into: of the bundle that is served; where another one becomes active in between, a chunk
            that was not written begins anew.
        told_bundle: the one that vectors belong to, as the client says.
        max_line_bytes: longest line.
        on_disk: runs a blocking call on the store's thread.
        stopping: whether the service drains.
        turn: of all imports; whose turn it is may ask the LLM, so that they fill its queue no more
            than one of them would.
    """

    def __init__(
        self,
        import_id: str,
        progress: Progress,
        into: Callable[[], Into],
        told_bundle: str | None,
        max_line_bytes: int,
        on_disk: Callable[[Callable[[], object]], Awaitable[object]],
        stopping: Callable[[], bool],
        turn: asyncio.Lock,
    ) -> None:
        self._import_id = import_id
        self._durable = progress.line
        self._current = into
        self._into = into()
        self._told_bundle = told_bundle
        self._max_line_bytes = max_line_bytes
        self._on_disk = on_disk
        self._stopping = stopping
        self._turn = turn
        self._number = 0  # of the last line that came whole
        self._rest = b""  # what came of the next one
        self._pending: list[_Line] = []
        self._pending_bytes = 0

    async def feed(self, piece: bytes) -> None:
        """Take the next bytes of the file.

        Raises:
            Invalid: a line is wrong; all before it are durable.
            NotReady: the service drains; all lines that came whole are durable.
            StorageFull, OutOfMemory: as they say; the lines of the chunk are not durable.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            await self._take(line)
        if len(self._rest) > self._max_line_bytes:  # its end need not be waited for
            self._pending.append(_Line(self._number + 1, self._rest))
            await self.flush()
        if self._stopping():
            await self.flush()
            raise self._stopped()

    async def flush(self) -> None:
        """Have all lines that came whole durable; raises as `feed`."""
        if not self._pending:
            return
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        while True:
            try:
                await self._write(pending)
                return
            except NotReady:
                before, self._into = self._into.store, self._current()
                if self._into.store is before:
                    raise

    async def _write(self, pending: Sequence[_Line]) -> None:
        items, broken = await asyncio.to_thread(self._items, pending)
        entries, unusable = await self._entries(items)
        broken = unusable or broken
        line = broken.number - 1 if broken else pending[-1].number
        if line > self._durable:
            progress = (self._import_id, line)
            await self._on_disk(lambda: self._into.store.put(entries, progress=progress))
            await asyncio.to_thread(self._into.store.hold_back, HELD_BACK_S)
            self._durable = line
        if broken:
            error = str(broken.error)
            await self._on_disk(lambda: self._into.store.imports.end(self._import_id, error))
            raise _told(broken)

    async def end(self) -> None:
        """The file is at its end, and with it its last line; raises as `feed`."""
        if self._rest:
            rest, self._rest = self._rest, b""
            await self._take(rest)
        await self.flush()
        await self._on_disk(lambda: self._into.store.imports.end(self._import_id))

    async def _take(self, content: bytes) -> None:
        self._number += 1
        if self._number <= self._durable:
            return
        self._pending.append(_Line(self._number, content))
        self._pending_bytes += len(content)
        full = len(self._pending) >= CHUNK_LINES or self._pending_bytes >= CHUNK_BYTES
        if full or len(content) > self._max_line_bytes:
            await self.flush()

    def _items(self, lines: Sequence[_Line]) -> tuple[list[tuple[int, ImportLine]], _Broken | None]:
        """The items of lines up to the first that is wrong, and that one."""
        found = []
        for number, content in lines:
            try:
                if content.strip() or len(content) > self._max_line_bytes:
                    found.append((number, self._item(number, content)))
            except Invalid as error:
                return found, _Broken(number, error)
        return found, None

    def _item(self, number: int, content: bytes) -> ImportLine:
        field = f"lines[{number}]"
        if len(content) > self._max_line_bytes:
            raise Invalid.field(field, f"is longer than {self._max_line_bytes} bytes")
        try:
            raw = decode(content, "the line")
        except Malformed as error:
            # Of the line itself it is always line 1.
            reason = str(error).replace(" at line 1 column ", " at column ")
            raise Invalid.field(field, reason) from None
        item = checked(ImportLine, raw, "lines", number)
        if item.vectors is not None:
            require_bundle(self._told_bundle, self._into.bundle_hash)
        return item

    async def _entries(
        self, items: Sequence[tuple[int, ImportLine]]
    ) -> tuple[list[Entry], _Broken | None]:
        """The entries of items up to the first that can have none, and that one."""
        found: list[Entry] = []
        for some in _shares(items):
            where = [f"lines[{number}]" for number, _ in some]
            ready = await self._ready([item for _, item in some], where)
            for (number, _), each in zip(some, ready, strict=True):
                if isinstance(each, Invalid):
                    return found, _Broken(number, each)
                found.append(each)
        return found, None

    async def _ready(
        self, items: Sequence[ImportLine], where: Sequence[str]
    ) -> list[Entry | Invalid]:
        """Entries, once the LLM has a place for them."""
        while True:
            try:
                async with self._turn:
                    return await self._into.readying.entries(items, where)
            except Overloaded as error:
                if self._stopping():
                    raise self._stopped() from None
                await asyncio.sleep(min(error.retry_after_s or 1, LONGEST_WAIT_S))

    def _stopped(self) -> NotReady:
        return NotReady(
            f"the service is draining; the first {self._durable} lines are stored, send all "
            "again with the same import_id to go on",
            retry_after_s=5,
        )


def _shares(items: Sequence[tuple[int, ImportLine]]) -> list[list[tuple[int, ImportLine]]]:
    """Items in their order, a few at a time; those that bring vectors cost the LLM nothing."""
    shares: list[list[tuple[int, ImportLine]]] = []
    cost = 0
    for number, item in items:
        price = len(written(item).encode()) if item.vectors is None else 0
        if not shares or len(shares[-1]) >= ASKED_ITEMS or cost + price > ASKED_BYTES:
            shares.append([])
            cost = 0
        shares[-1].append((number, item))
        cost += price
    return shares


def _told(broken: _Broken) -> Invalid:
    before = broken.number - 1
    return Invalid(
        f"{broken.error}; line {broken.number} is the first that is wrong, and the {before} before "
        "it are stored: mend it and send all again with the same import_id",
        errors=broken.error.errors,
    )
