"""Attributes of items as sorted values and the rows that have them, so that a filter is a slice.

All values of all attributes of a block stand in one sorted list of keys: the attribute's name,
the kind, and the value so that bytes are ordered as values are. An equal value is then one key, a
range and all values of an attribute are neighbours, and their rows stand together.
"""

import json
import math
import struct
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.item import is_missing
from service.filters import (
    MAX_BYTES,
    And,
    AnyOf,
    Bound,
    Exists,
    Filter,
    HeldKind,
    Not,
    Or,
    Range,
    Value,
)

Mask = NDArray[np.bool_]
Rows = NDArray[np.int32]

KEPT = 8  # masks of the latest filters
MOST_NAMES = 20  # of attributes in one error
TEXT = b"\x04"  # a string that is too long to be compared: it only exists
KINDS: Mapping[HeldKind, bytes] = {
    "boolean": b"\x01",
    "number": b"\x02",
    "string": b"\x03",
    "text": TEXT,
}
NO_KIND, END = b"\x00", b"\x05"  # before and after all kinds
SIGN = 1 << 63
NOTHING = -1  # the code of what says nothing


def _prefix(name: str) -> bytes:
    """What all keys of an attribute begin with, and those of no other."""
    encoded = name.encode()
    return struct.pack(">H", len(encoded)) + encoded


def _number(value: float) -> bytes:
    """A 64-bit float as bytes in the order of the numbers."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", value))
    return struct.pack(">Q", ~bits & (2**64 - 1) if bits & SIGN else bits | SIGN)


def coded(value: bool | float | str | bytes) -> bytes:
    """A value's kind and itself; bytes are coded already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return KINDS["string"] + value.encode()
    if isinstance(value, bool):
        return KINDS["boolean"] + bytes([value])
    return KINDS["number"] + _number(value + 0.0)


def _plain(value: bool | float | str) -> bool | float | str | bytes:
    """A value as it is compared: a number as a float, a long string not at all."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # it has more than 308 digits
            return math.inf if value > 0 else -math.inf
    return TEXT if isinstance(value, str) and len(value.encode()) > MAX_BYTES else value


def _parts(value: Sequence[Any]) -> Iterator[Any]:
    """The scalars in a list."""
    for part in value:
        if isinstance(part, list):
            yield from _parts(part)
        else:
            yield part


def coded_values(
    attributes: Mapping[str, Any], names: Collection[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Each value that an item may be filtered by, as `coded`, and the name that it stands under.

    Args:
        names: of the attributes to look at; None is all.
    """
    for name, value in attributes.items():
        if (names is None or name in names) and comparable(name):
            for part in _parts(value if isinstance(value, list) else [value]):
                if not is_missing(part):
                    yield name, coded(_plain(part))


class Keys(Sequence[bytes]):
    """Byte strings, distinct and in order.

    Args:
        joined: all of them, one after the other.
        ends: (v + 1,) int64, where each ends, after a 0.
    """

    def __init__(self, joined: bytes, ends: NDArray[np.int64]) -> None:
        self._joined = joined
        self._ends = ends

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "Keys":
        """Keys that are distinct and in order."""
        lengths = np.fromiter(map(len, keys), np.int64, len(keys))
        return cls(b"".join(keys), _sums(lengths))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: Any) -> Any:  # noqa: ANN401 - Sequence's own overloads
        return self._joined[self._ends[at] : self._ends[at + 1]]

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that they are."""
        return {"keys": np.frombuffer(self._joined, np.uint8), "ends": self._ends}

    def span(self, low: bytes, high: bytes) -> tuple[int, int]:
        """From where to where keys are at least `low` and less than `high`."""
        start = bisect_left(self, low)
        # Mostly it is one value that is looked for.
        for stop in range(start, min(start + 2, len(self))):
            if self[stop] >= high:
                return start, stop
        return start, bisect_left(self, high, start)

    def kept(self, which: Mask) -> "Keys":
        """Some of them."""
        lengths = np.diff(self._ends)
        joined = np.frombuffer(self._joined, np.uint8)[np.repeat(which, lengths)]
        return Keys(joined.tobytes(), _sums(lengths[which]))

    def merged(self, few: "Keys") -> tuple["Keys", NDArray[np.int64], NDArray[np.int64]]:
        """These and fewer others; and where these and those stand among them."""
        places: NDArray[np.int64] = np.fromiter(
            (bisect_left(self, key) for key in few), np.int64, len(few)
        )
        new = np.fromiter(
            (at == len(self) or self[at] != key for at, key in zip(places, few, strict=True)),
            bool,
            len(few),
        )
        into = places[new]  # before which of these a new one comes
        mine = np.arange(len(self)) + np.searchsorted(into, np.arange(len(self)), side="right")
        theirs = np.empty(len(few), np.int64)
        theirs[new] = into + np.arange(len(into))
        theirs[~new] = mine[places[~new]]
        pieces, done = [], 0
        for at, key in zip(self._ends[into].tolist(), few.kept(new), strict=True):
            pieces += [self._joined[done:at], key]
            done = at
        lengths = np.empty(len(self) + len(into), np.int64)
        lengths[mine] = np.diff(self._ends)
        lengths[theirs] = np.diff(few._ends)
        return Keys(b"".join([*pieces, self._joined[done:]]), _sums(lengths)), mine, theirs


class _Gathered:
    """Values of items that come one by one; with a million of them each look-up counts.

    Attributes:
        count: the number of items.
        keys: what values there are, in the order in which they came; a value's place is its code.
        codes: of each value of each item.
        rows: of each of these codes, the item.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        self.count = 0
        self.keys: list[bytes] = []
        self.codes, self.rows = array("i"), array("i")
        self._names = names
        # Of a name and a type, each value's code; by type, since True and 1 are equal in Python.
        # None is a name that nothing is to be known of.
        self._known: dict[str, dict[type, dict[Any, int]] | None] = {}

    def add(self, attributes: Mapping[str, Any]) -> None:
        """Take in the next item."""
        for name, value in attributes.items():
            try:
                known = self._known[name]
            except KeyError:
                asked = self._names is None or name in self._names
                known = self._known[name] = {} if asked and comparable(name) else None
            if known is None:
                continue
            if isinstance(value, list):
                codes = {self._code(name, known, part) for part in _parts(value)}
                codes.discard(NOTHING)
                self.codes.extend(codes)
                self.rows.extend([self.count] * len(codes))
            elif (code := self._code(name, known, value)) != NOTHING:
                self.codes.append(code)
                self.rows.append(self.count)
        self.count += 1

    def _code(self, name: str, known: dict[type, dict[Any, int]], value: Any) -> int:  # noqa: ANN401
        try:
            return known[type(value)][value]
        except KeyError:
            pass
        if is_missing(value):
            return NOTHING
        plain = _plain(value)
        codes = known.setdefault(type(plain), {})
        if plain not in codes:
            codes[plain] = len(self.keys)
            self.keys.append(_prefix(name) + coded(plain))
        if type(value) is int:  # one look-up the next time
            known.setdefault(int, {})[value] = codes[plain]
        return codes[plain]


class Columns:
    """Which of n items have which values of which attributes; never changed.

    Args:
        count: the number of items (n).
        keys: what values there are (v).
        starts: (v + 1,) int32, where in `rows` those of each key begin, and the end.
        rows: int32, of each key the items that have it.
    """

    def __init__(self, count: int, keys: Keys, starts: Rows, rows: Rows) -> None:
        self._count = count
        self._keys = keys
        self._starts = starts
        self._rows = rows
        self._masks: OrderedDict[Filter, Mask] = OrderedDict()
        self._lock = Lock()
        self._kinds: dict[str, frozenset[HeldKind]] = {}

    @classmethod
    def of(
        cls, attributes: Iterable[Mapping[str, Any]], names: Collection[str] | None = None
    ) -> "Columns":
        """The columns of items, by their attributes in order.

        Args:
            names: of the attributes to know; None is all.
        """
        gathered = _Gathered(names)
        for each in attributes:
            gathered.add(each)
        order = sorted(range(len(gathered.keys)), key=gathered.keys.__getitem__)
        places = np.empty(len(order), np.int64)
        places[np.array(order, np.int64)] = np.arange(len(order))
        return cls._sorted(
            gathered.count,
            Keys.of([gathered.keys[code] for code in order]),
            places[np.array(gathered.codes, np.int64)],
            np.array(gathered.rows, np.int32),
        )

    @classmethod
    def _sorted(cls, count: int, keys: Keys, places: NDArray[np.int64], rows: Rows) -> "Columns":
        """Of each row that has a key, the key's place."""
        counts = np.bincount(places, minlength=len(keys))
        return cls(
            count,
            keys,
            _sums(counts).astype(np.int32),
            rows[np.argsort(places, kind="stable")],
        )

    @classmethod
    def of_arrays(cls, count: int, arrays: Mapping[str, NDArray[Any]]) -> "Columns":
        """The columns of as many items of which `arrays` are."""
        keys = Keys(arrays["keys"].tobytes(), arrays["ends"])
        return cls(count, keys, arrays["starts"], arrays["rows"])

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that they are, to be kept on a disk: much faster to read than to make anew."""
        return {**self._keys.arrays, "starts": self._starts, "rows": self._rows}

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """What they take in memory, without the masks that are kept."""
        return sum(each.nbytes for each in self.arrays.values())

    def kinds(self, name: str) -> frozenset[HeldKind]:
        """Of which kinds items have values of an attribute."""
        if name not in self._kinds:
            prefix = _prefix(name)
            first = bisect_left(self._keys, prefix)
            if first == len(self._keys) or not self._keys[first].startswith(prefix):
                return frozenset()  # not kept: there is no end of such names
            spans = {
                kind: self._keys.span(prefix + code, prefix + _after(code))
                for kind, code in KINDS.items()
            }
            self._kinds[name] = frozenset(
                kind for kind, (start, stop) in spans.items() if start < stop
            )
        return self._kinds[name]

    def take(self, rows: NDArray[np.integer[Any]]) -> "Columns":
        """The columns of some of the items, each once, in this order."""
        if np.array_equal(rows, np.arange(self._count)):
            return self
        where = np.full(self._count, -1, np.int32)
        where[rows] = np.arange(len(rows), dtype=np.int32)
        moved = where[self._rows]
        there = moved >= 0
        sums = _sums(there)
        counts = np.diff(sums[self._starts])
        return Columns(
            len(rows),
            self._keys.kept(counts > 0),
            _sums(counts[counts > 0]).astype(np.int32),
            moved[there],
        )

    def joined(self, other: "Columns") -> "Columns":
        """The columns of these items and, after them, of others; fast where either are few."""
        if len(other._keys) <= len(self._keys):
            keys, mine, theirs = self._keys.merged(other._keys)
        else:
            keys, theirs, mine = other._keys.merged(self._keys)
        places = np.concatenate(
            [
                np.repeat(mine, np.diff(self._starts)),
                np.repeat(theirs, np.diff(other._starts)),
            ]
        )
        rows = np.concatenate([self._rows, other._rows + np.int32(self._count)])
        return Columns._sorted(self._count + other._count, keys, places, rows)

    @classmethod
    def joining(cls, pieces: Sequence["Columns"]) -> "Columns":
        """The columns of the items of all pieces."""
        whole = cls.of(())
        for piece in reversed(pieces):  # the small ones first
            whole = piece.joined(whole)
        return whole

    def mask(self, matching: Filter) -> Mask:
        """(n,) which items match; read-only, and kept for when it is asked for again."""
        with self._lock:
            if matching in self._masks:
                self._masks.move_to_end(matching)
                return self._masks[matching]
        mask = self._evaluated(matching)
        mask.flags.writeable = False
        with self._lock:
            self._masks[matching] = mask
            while len(self._masks) > KEPT:
                self._masks.popitem(last=False)
        return mask

    def _evaluated(self, matching: Filter) -> Mask:
        if isinstance(matching, Not):
            return ~self._evaluated(matching.part)
        if isinstance(matching, And | Or):
            join = np.logical_and if isinstance(matching, And) else np.logical_or
            first, *others = matching.parts
            mask = self._evaluated(first)
            for part in others:
                join(mask, self._evaluated(part), out=mask)
            return mask
        mask = np.zeros(self._count, bool)
        spans = (
            [self._value_span(matching.attribute, value) for value in matching.values]
            if isinstance(matching, AnyOf)
            else [self._span(matching)]
        )
        for start, stop in spans:
            mask[self._rows[self._starts[start] : self._starts[stop]]] = True
        return mask

    def _value_span(self, name: str, value: Value) -> tuple[int, int]:
        key = _prefix(name) + coded(value.value)
        return self._keys.span(key, _next(key))

    def _span(self, matching: Range | Exists) -> tuple[int, int]:
        prefix = _prefix(matching.attribute)
        if isinstance(matching, Exists):
            return self._keys.span(prefix + NO_KIND, prefix + END)
        kind = KINDS[matching.kind]
        low = prefix + (_edge(matching.low, after=False) if matching.low else kind)
        high = prefix + (_edge(matching.high, after=True) if matching.high else _after(kind))
        return self._keys.span(low, max(low, high))


def appended(pieces: Sequence[Columns], more: Columns) -> tuple[Columns, ...]:
    """Pieces and one more behind; each is at least twice as long as the next.

    So they stay few, an item is joined to others a few times in all, and the masks of those that
    are long stay good while items come.
    """
    if not len(more):
        return tuple(pieces)
    *before, last = (*pieces, more)
    while before and len(before[-1]) < 2 * len(last):
        last = before.pop().joined(last)
    return (*before, last)


def comparable(name: str) -> bool:
    """Whether an attribute's name is short enough to be filtered by."""
    return len(name.encode()) <= MAX_BYTES


def _after(kind: bytes) -> bytes:
    """The kind that comes after one."""
    return bytes([kind[0] + 1])


def _next(key: bytes) -> bytes:
    """The least byte string that is greater."""
    return key + b"\x00"


def _edge(bound: Bound, after: bool) -> bytes:
    """Where a range begins, or (after) ends: at the bound's key or right behind it."""
    key = coded(bound.value.value)
    return _next(key) if bound.inclusive is after else key


def _sums(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(n + 1,) where each part begins that has such a length, and the end."""
    sums = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=sums[1:])
    return sums


class Filterable(NamedTuple):
    """What may be filtered by at one moment; as filters.Attributes.

    Attributes:
        declared: names; None: all that items have.
        known: names of the attributes that items have.
        held: of a name, the kinds of the values that items have.
    """

    declared: Collection[str] | None
    known: Collection[str]
    held: Callable[[str], Collection[HeldKind]]

    def refusal(self, name: str) -> str | None:
        """Why nothing may be filtered by an attribute; None if it may."""
        if not comparable(name):
            return "is too long a name to filter by"
        if self.declared is None:
            if self.held(name):
                return None
            reason, names = "no item has this attribute", set(self.known)
        elif name in self.declared:
            return None
        else:
            reason, names = "cannot be filtered by", set(self.declared)
        listed = ", ".join(json.dumps(each) for each in sorted(names)[:MOST_NAMES])
        more = " and others" * (len(names) > MOST_NAMES)
        return f"{reason}; filters may name {listed or 'none'}{more}"

    def kinds(self, name: str) -> Collection[HeldKind]:
        """Of which kinds items have values of an attribute."""
        return self.held(name)
