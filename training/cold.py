"""Cold items: who is held out of everything that is fitted, and the questions asked about them.

Two disjoint sets of items are drawn; the first chooses how new items are let in, the second
tests, once. Their interactions are taken out of every history before the split, so that nothing
fitted - SCFT texts, whitening, views, statistics, neighbours, negatives - sees them. Each set then
enters the catalogue without the other, as a served PUT leaves it: with the views that come from
words. So what is chosen with the first knows nothing of the second, not even its words.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from training.interactions import Interactions, Questions, Rows


@dataclass(frozen=True)
class ColdItems:
    """The rows of two disjoint sets of items."""

    validation: Rows
    test: Rows

    @classmethod
    def draw(cls, interactions: Interactions, share: float, seed: int) -> "ColdItems":
        """Two sets, each of that share of the items somebody used, at random."""
        used = np.unique(interactions.rows)
        drawn = np.random.default_rng([seed, 4]).permutation(used)
        size = int(share * len(used))
        return cls(np.sort(drawn[:size]), np.sort(drawn[size : 2 * size]))

    def save(self, folder: Path) -> None:
        """Write cold.safetensors."""
        arrays = {"validation": self.validation, "test": self.test}
        save_file(arrays, folder / "cold.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "ColdItems | None":
        """What save wrote; None where nothing is held out."""
        path = folder / "cold.safetensors"
        if not path.exists():
            return None
        arrays = load_file(path)
        return cls(arrays["validation"], arrays["test"])

    def mask(self, items: int, *sets: Rows) -> NDArray[np.bool_]:
        """(n,) who is held out; in these sets, if some are given."""
        held = np.zeros(items, bool)
        held[np.concatenate(sets or (self.validation, self.test)) - 1] = True
        return held

    def questions(self, interactions: Interactions, asked: Rows) -> Questions:
        """What came before each user's first held-out item, where that is one of `asked`.

        Users who begin with a held-out item have no history to ask with, and are left out.

        Args:
            asked: `validation` or `test`.
        """
        held = np.concatenate([self.validation, self.test])
        histories, targets = [], []
        for history in interactions.histories():
            places = np.flatnonzero(np.isin(history, held))
            if len(places) and places[0] > 0 and history[places[0]] in asked:
                histories.append(history[: places[0]])
                targets.append(history[places[0]])
        return Questions(histories, np.array(targets, np.int32))
