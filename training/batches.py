"""Training histories as batches of windows.

Every random choice comes from a generator seeded by (seed, epoch), so a run that was killed and
resumed sees the batches that an uninterrupted one sees.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from training.interactions import Rows


def windows(histories: Sequence[Rows], max_history: int, random: np.random.Generator) -> list[Rows]:
    """Pieces of at most max_history + 1 items, so that each step has its next item as target.

    A history that is longer is cut at a random offset anew each time, and its latest items are
    always a window of their own, as they are what a model reads when it serves. Histories of
    one item have no target and give no window.
    """
    pieces: list[Rows] = []
    for history in histories:
        ends = {len(history)}
        if len(history) > max_history + 1:
            offset = int(random.integers(max_history))
            ends |= set(range(len(history) - offset, 1, -max_history))
        pieces += [history[max(0, end - max_history - 1) : end] for end in sorted(ends) if end > 1]
    return pieces


def pad_left(pieces: Sequence[Rows]) -> NDArray[np.int64]:
    """(B, L) int64, each piece at the right, 0 before it."""
    longest = max(len(piece) for piece in pieces)
    rows = np.zeros((len(pieces), longest), np.int64)
    for place, piece in enumerate(pieces):
        rows[place, longest - len(piece) :] = piece
    return rows


def batches(
    pieces: Sequence[Rows], batch_tokens: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Windows of similar length together, (B, L) with B * L <= batch_tokens, in random order.

    A window longer than batch_tokens is a batch of its own. Lengths are sorted with a little
    noise, so that the same windows do not always meet.
    """
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(lengths + random.uniform(0, 4, len(pieces)), kind="stable")
    groups: list[list[int]] = [[]]
    longest = 0
    for place in order:
        longest = max(longest, int(lengths[place]))
        if groups[-1] and longest * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
            longest = int(lengths[place])
        groups[-1].append(int(place))
    for group in random.permutation(len(groups)):
        yield pad_left([pieces[place] for place in groups[group]])
