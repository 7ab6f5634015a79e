"""Data formats. A source reads a folder into items and interactions, and knows nothing else."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.item import InvalidItem, Item, is_missing, parse_item
from training import JobError


@dataclass(frozen=True)
class Events:
    """Interactions in the source's order, as columns of the same length.

    `times` is None where the source has no time; `where` says where each stood (file:row).
    """

    users: list[str]
    items: list[str]
    times: list[float] | None
    where: list[str]

    def at(self, places: NDArray[np.int64]) -> "Events":
        """The interactions at these places alone, in the order of the places."""
        kept = places.tolist()
        return Events(
            [self.users[place] for place in kept],
            [self.items[place] for place in kept],
            None if self.times is None else [self.times[place] for place in kept],
            [self.where[place] for place in kept],
        )


@dataclass(frozen=True)
class Source:
    """What a data set says: its items, and who used which when.

    Attributes:
        repeats: interactions that were left out because the user had used the item before.
        blank: items that were left out because they say nothing.
    """

    items: list[Item]
    events: Events
    repeats: int = 0
    blank: int = 0


def item_of(item_id: str, attributes: dict[str, object], where: str) -> Item:
    """An Item, or a JobError that opens with file and line."""
    try:
        return parse_item({"item_id": item_id, "attributes": attributes}, where)
    except InvalidItem as error:
        raise JobError(str(error)) from None


def items_of(rows: Iterable[tuple[str, dict[str, object], str]]) -> list[Item]:
    """Items of (id, attributes, file:line).

    Attributes that say nothing are left out, as are items that have no others. Of several rows
    with one id the first with a title counts, or the first.

    Raises:
        JobError: a row is no Item.
    """
    found: dict[str, Item] = {}
    for item_id, attributes, where in rows:
        told = {name: value for name, value in attributes.items() if not is_missing(value)}
        before = found.get(item_id)
        if told and (not before or ("title" in told and "title" not in before.attributes)):
            found[item_id] = item_of(item_id, told, where)
    return list(found.values())


def events_of(rows: Iterable[tuple[str, str, float, str]]) -> Events:
    """Events of (user, item, seconds, file:line); each id is kept in memory once."""
    users: list[str] = []
    items: list[str] = []
    times: list[float] = []
    places: list[str] = []
    for user, item, time, where in rows:
        users.append(sys.intern(user))
        items.append(sys.intern(item))
        times.append(time)
        places.append(where)
    return Events(users, items, times, places)


def codes_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64: a number for each id, from 0 upwards in the order of their first appearance."""
    codes: dict[str, int] = {}
    return np.fromiter((codes.setdefault(name, len(codes)) for name in ids), np.int64, len(ids))


def first_of_each(events: Events) -> tuple[Events, int]:
    """Of each user and item the earliest interaction; of several at that time, the first.

    Returns:
        What is left, in its order, and how many were left out.
    """
    users, items = codes_of(events.users), codes_of(events.items)
    pairs = users * (items.max(initial=0) + 1) + items
    order = np.argsort(np.array(events.times or np.zeros(len(pairs))), kind="stable")
    _, first = np.unique(pairs[order], return_index=True)
    return events.at(np.sort(order[first])), len(pairs) - len(first)
