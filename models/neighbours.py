"""What followed an item in the training histories: an item-to-item score, not a vector.

Shapes: n training items, K neighbours kept of each, L items of a history.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]


class Neighbours:
    """Scores candidates by what followed the latest items of a history.

    A history scores candidate c with the sum, over its latest items h, of decay^age times the
    weight of c among h's neighbours; age 0 is the latest item. Everything that follows none of
    them scores 0, as does an item that training did not know. Memory-based session models stay
    close to neural ones on sparse data, and err elsewhere (Ludewig and Jannach 2018,
    arXiv:1803.09587).

    Args:
        rows: (n, K) int32, of each training item the rows of its neighbours, from 1; 0 for none.
        weights: (n, K) float32, how strongly each follows; positive, 0 where there is none.
        decay: what an item counts less than the next younger one.
        latest: items of a history that are read.

    Raises:
        ValueError: the shapes differ, a row is none of the catalogue's, or a weight is negative.
    """

    def __init__(self, rows: Rows, weights: Floats, decay: float, latest: int) -> None:
        if rows.shape != weights.shape or rows.ndim != 2:
            raise ValueError(f"neighbours {rows.shape} do not match their weights {weights.shape}")
        if rows.size and not (rows.min() >= 0 and rows.max() <= len(rows)):
            raise ValueError(f"a neighbour is none of the {len(rows)} items")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("a neighbour's weight is negative or not finite")
        self.rows = rows
        self.weights = weights
        self.decay = decay
        self.latest = latest

    def __len__(self) -> int:
        """Training items (n)."""
        return len(self.rows)

    def scores(self, history: Sequence[int] | Rows) -> tuple[Rows, Floats]:
        """Rows (m,) that follow the history's, ascending, and their scores (m,).

        Scores are divided by their root mean square over the training items, which brings them
        to the scale of a standardised view, whatever the history's length.

        Args:
            history: rows, oldest first; 0, an item that training did not know, is skipped.
        """
        known = np.asarray(history, np.int64)
        places = known[known > 0][::-1][: self.latest] - 1
        ages = np.arange(len(places))
        counted = (self.weights[places] * self.decay ** ages[:, None]).ravel()
        rows, inverse = np.unique(self.rows[places].ravel(), return_inverse=True)
        sums = np.bincount(inverse, counted.astype(np.float64), len(rows))
        rows, sums = rows[rows > 0], sums[rows > 0]
        scale = np.sqrt((sums**2).sum() / len(self))
        if scale == 0:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return rows, (sums / scale).astype(np.float32)

    def table(self, histories: Sequence[Sequence[int] | Rows]) -> Floats:
        """Scores (B, n) float32 of all training items for each history."""
        found = np.zeros((len(histories), len(self)), np.float32)
        for place, history in enumerate(histories):
            rows, scores = self.scores(history)
            found[place, rows - 1] = scores
        return found
