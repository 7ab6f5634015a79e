"""Who used what, in which order; and how that is split for training and testing.

Shapes: U users, N interactions, n items; rows count from 1, row 0 is padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Rows = NDArray[np.int32]
MIN_HISTORY = 3  # one item to read, one to validate, one to test on
TIME_SHARE = 0.9


@dataclass(frozen=True)
class Interactions:
    """The histories of U users: user u's item rows are rows[starts[u]:starts[u + 1]].

    Attributes:
        rows: (N,) int32, all histories one after the other, each oldest first.
        starts: (U + 1,) int64.
        times: (N,) float64 seconds, NaN where the source has none.
        users: the source's user ids. They enter no prompt, no model and no bundle.
    """

    rows: Rows
    starts: NDArray[np.int64]
    times: NDArray[np.float64]
    users: list[str]

    @classmethod
    def of(cls, histories: Sequence[Sequence[int]]) -> "Interactions":
        """Interactions of plain lists of item rows, one a user."""
        lengths = [len(history) for history in histories]
        rows = np.array([row for history in histories for row in history], np.int32)
        return cls(
            rows,
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.full(len(rows), np.nan),
            [str(user) for user in range(len(histories))],
        )

    def __len__(self) -> int:
        return len(self.users)

    def histories(self) -> Iterator[Rows]:
        """Each user's item rows, oldest first."""
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            yield self.rows[start:end]

    def without(self, rows: Rows) -> "Interactions":
        """The interactions with all items but these; users who have none left are gone."""
        stays = ~np.isin(self.rows, rows)
        users = np.repeat(np.arange(len(self)), np.diff(self.starts))[stays]
        left, lengths = np.unique(users, return_counts=True)
        return Interactions(
            self.rows[stays],
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self.times[stays],
            [self.users[user] for user in left],
        )

    def save(self, folder: Path) -> None:
        """Write interactions.safetensors and users.txt."""
        save_file(
            {"rows": self.rows, "starts": self.starts, "times": self.times},
            folder / "interactions.safetensors",
        )
        (folder / "users.txt").write_text(
            "".join(f"{user}\n" for user in self.users), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> "Interactions":
        """Read what save wrote."""
        arrays = load_file(folder / "interactions.safetensors")
        users = (folder / "users.txt").read_text(encoding="utf-8").split("\n")[:-1]
        return cls(arrays["rows"], arrays["starts"], arrays["times"], users)


class Questions(NamedTuple):
    """Histories (U) and the item that follows each (U,)."""

    histories: list[Rows]
    targets: Rows


@dataclass(frozen=True)
class Split:
    """What trains, what validates and what tests; made by leave_one_out or by_time.

    Of V users the last item of what could train validates instead. To choose settings by, a few
    thousand are enough; every user's would take the latest interactions out of what is learnt.

    Attributes:
        train: of each user, the training history (at least one item).
        validating: (V,) int64, ascending, the users of the validation targets.
        validation: (V,) target rows; the history before each is its user's `train`.
        testing: (T,) int64, ascending, the users of the test targets.
        test: (T,) target rows; the history before each is all that trains or validates.
        counts: (n + 1,) int64, interactions of each row in the training split; counts[0] is 0.
    """

    train: list[Rows]
    validating: NDArray[np.int64]
    validation: Rows
    testing: NDArray[np.int64]
    test: Rows
    counts: NDArray[np.int64]

    @property
    def validation_histories(self) -> list[Rows]:
        """Of each validating user, what is known before the validation item."""
        return [self.train[user] for user in self.validating]

    def validation_questions(self, chosen: NDArray[np.int64]) -> Questions:
        """Some of the validation items, by their places in `validation`."""
        histories = [self.train[user] for user in self.validating[chosen]]
        return Questions(histories, self.validation[chosen])

    @property
    def test_histories(self) -> list[Rows]:
        """Of each testing user, what is known before the test item."""
        histories = list(self.train)
        for user, target in zip(self.validating.tolist(), self.validation, strict=True):
            histories[user] = np.append(histories[user], target).astype(np.int32)
        return [histories[user] for user in self.testing]

    def head(self) -> NDArray[np.bool_]:
        """(n + 1,) bool: the 20 % of items with most training interactions; ties go to the tail."""
        items = len(self.counts) - 1
        order = np.sort(self.counts[1:])[::-1]
        size = int(0.2 * items)
        boundary = order[size] if size < items else -1
        return self.counts > boundary if size else np.zeros(items + 1, bool)


def leave_one_out(
    interactions: Interactions, items: int, validation_users: int | None = None, seed: int = 0
) -> Split:
    """Of each user with at least MIN_HISTORY interactions the last item tests.

    Args:
        items: size of the catalogue (n).
        validation_users: how many validate, drawn by the seed; None: all.

    Raises:
        ValueError: no user has a history long enough.
    """
    kept = [history for history in interactions.histories() if len(history) >= MIN_HISTORY]
    if not kept:
        raise ValueError(
            f"none of {len(interactions)} users has {MIN_HISTORY} interactions or more"
        )
    tests = np.array([history[-1] for history in kept], np.int32)
    before = [history[:-1] for history in kept]
    return _split(before, np.arange(len(kept)), tests, items, validation_users, seed)


def by_time(
    interactions: Interactions, items: int, validation_users: int | None = None, seed: int = 0
) -> Split:
    """What everybody did from one moment on tests: the first item of it, of each user known before.

    The moment is that before which TIME_SHARE of all interactions happened. Unlike in
    leave_one_out nothing is learnt of what comes after a test item, as it is in use.

    Args:
        items: size of the catalogue (n).
        validation_users: how many validate, drawn by the seed; None: all.

    Raises:
        ValueError: an interaction has no time, times are but places in each history, or nobody
            has interactions before and after.
    """
    if not np.isfinite(interactions.times).all():
        raise ValueError("a split by time needs the time of every interaction")
    places = np.arange(len(interactions.times)) - np.repeat(
        interactions.starts[:-1], np.diff(interactions.starts)
    )
    if np.array_equal(interactions.times - interactions.times.min(initial=0), places):
        raise ValueError("the timestamps only count each user's interactions; they are no times")
    moment = np.quantile(interactions.times, TIME_SHARE)
    early = interactions.times < moment
    before: list[Rows] = []
    testing: list[int] = []
    tests: list[int] = []
    for start, end in zip(interactions.starts, interactions.starts[1:], strict=False):
        known = int(early[start:end].sum())  # they come first
        if not known:
            continue
        if start + known < end:
            testing.append(len(before))
            tests.append(interactions.rows[start + known])
        before.append(interactions.rows[start : start + known])
    if not testing or max(len(history) for history in before) < 2:
        raise ValueError("nobody has two interactions before, and another after, one moment")
    asked = np.array(testing, np.int64)
    return _split(before, asked, np.array(tests, np.int32), items, validation_users, seed)


def _split(
    before: list[Rows],
    testing: NDArray[np.int64],
    test: Rows,
    items: int,
    validation_users: int | None,
    seed: int,
) -> Split:
    """Users with one item before the test train on it; some of the others validate."""
    able = np.flatnonzero([len(history) > 1 for history in before])
    drawn = np.random.default_rng([seed, 5]).permutation(able)[:validation_users]
    validating = np.sort(drawn)
    train = list(before)
    for user in validating:
        train[user] = before[user][:-1]
    return Split(
        train,
        validating,
        np.array([before[user][-1] for user in validating], np.int32),
        testing,
        test,
        np.bincount(np.concatenate(train), minlength=items + 1),
    )
