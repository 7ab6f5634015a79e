"""The ids of millions of items in few bytes: who stands at a place, and where an id stands.

A list of strings and a dictionary of their places take more than 150 bytes an item beside the ids.
Here it is 16: all ids lie in one string of bytes, and their hashes, in order, say where to look.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.vectors import Places

# Of Python's own hash of a string, which nobody outside can foresee. Of a million ids some hundred
# share theirs with another; those are told apart by the ids themselves.
HASH_BITS = 0xFFFFFFFF


class Ids(Sequence[str]):
    """Ids by their place, of which the same may come several times; never changed.

    Args:
        joined: all ids in UTF-8, one after the other.
        ends: (n + 1,) int64, where each ends, after a 0.
        hashes: (n,) uint32, in order.
        at: (n,) int32, at which place each of these stands; of equal ones the later place is later.
    """

    def __init__(
        self,
        joined: bytes,
        ends: NDArray[np.int64],
        hashes: NDArray[np.uint32],
        at: NDArray[np.int32],
    ) -> None:
        self._joined = joined
        self._ends = ends
        self._hashes = hashes
        self._at = at
        # Of a single number these take a tenth of what an array takes.
        self._end, self._hash = ends.data, hashes.data

    @classmethod
    def of(cls, item_ids: Iterable[str]) -> "Ids":
        """Ids in the order of their places."""
        joined, lengths, hashes = bytearray(), array("i"), array("I")
        for each in item_ids:
            encoded = each.encode()
            joined += encoded
            lengths.append(len(encoded))
            hashes.append(hash(each) & HASH_BITS)
        ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.array(lengths, np.int64), out=ends[1:])
        return cls(bytes(joined), ends, *_in_order(np.array(hashes, np.uint32)))

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - Sequence's own overloads
        return self._joined[self._end[place] : self._end[place + 1]].decode()

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        arrays = self._ends, self._hashes, self._at
        return len(self._joined) + sum(each.nbytes for each in arrays)

    def place(self, item_id: str) -> int:
        """Where an id stands last; -1 if it is not here."""
        wanted = hash(item_id) & HASH_BITS
        return self._last(item_id, wanted, bisect_right(self._hash, wanted))

    def places(self, item_ids: Sequence[str]) -> Places:
        """Where ids stand last, in their order; -1 for those that are not here."""
        hashes = (hash(each) & HASH_BITS for each in item_ids)
        wanted = np.fromiter(hashes, np.uint32, len(item_ids))
        behind = np.searchsorted(self._hashes, wanted, side="right")
        found = map(self._last, item_ids, wanted.tolist(), behind.tolist())
        return np.fromiter(found, np.int64, len(item_ids))

    def _last(self, item_id: str, wanted: int, behind: int) -> int:
        """The last place of an id, by its hash and the first of the hashes that is larger."""
        while behind and self._hash[behind - 1] == wanted:
            behind -= 1
            place = int(self._at[behind])
            if self[place] == item_id:
                return place
        return -1

    def joined(self, more: "Ids") -> "Ids":
        """These and, at the places after them, others."""
        ends = np.concatenate([self._ends, more._ends[1:] + self._ends[-1]])
        # Two runs that are in order, which the sort finds out: it costs as much as to copy them.
        hashes, order = _in_order(np.concatenate([self._hashes, more._hashes]))
        at = np.concatenate([self._at, more._at + np.int32(len(self))])
        return Ids(self._joined + more._joined, ends, hashes, at[order])


def _in_order(hashes: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Hashes in order, and where each was; equal ones stay in their order."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return hashes[order], order
