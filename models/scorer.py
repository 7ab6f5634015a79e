"""What turns the views of a history and of a candidate into one number.

The only implementation: training's evaluation and the service rank with it. Shapes: B
histories, n candidates, W = a view's own width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ViewStatistics:
    """Mean (W,) and covariance (W, W) of one view over the training items."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, table: Floats) -> "ViewStatistics":
        """The statistics of training items' vectors (n, W)."""
        wide = table.astype(np.float64)
        mean = wide.mean(axis=0)
        centred = wide - mean
        covariance = centred.T @ centred / len(wide)
        return cls(mean.astype(np.float32), covariance.astype(np.float32))


class Scorer:
    """Sums, over the views an item has, its standardised score in each.

    In one view a candidate x scores (s . (x - mean)) / sqrt(s' C s) for the state s: its dot
    product, standardised over the training items for this very history. Mean and covariance C
    are stored, so adding an item changes no other item's score, and the scale of s is irrelevant.
    Summing standardised scores of separately trained views follows EnsRec (arXiv 2512.17820).

    Args:
        statistics: of each view, over training items.
        weights: of each view in the sum; the same names.
        partial_factor: multiplies the sum of an item that lacks some view, whose sum would
            otherwise stand on another scale than that of items with all of them.

    Raises:
        ValueError: the names differ, or a weight is no positive number.
    """

    def __init__(
        self,
        statistics: Mapping[str, ViewStatistics],
        weights: Mapping[str, float],
        partial_factor: float = 1.0,
    ) -> None:
        if set(statistics) != set(weights):
            raise ValueError(f"weights for {sorted(weights)}, statistics for {sorted(statistics)}")
        for view, weight in weights.items():
            if not (np.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of view {view!r} is {weight}; it must be positive")
        self.statistics = dict(statistics)
        self.weights = dict(weights)
        self.partial_factor = partial_factor

    def queries(self, states: Mapping[str, Floats]) -> dict[str, Floats]:
        """States (B, W) of each view to queries (B, W): weighted, and standardised per history.

        A state of zeros - no item of the history has the view - stays zeros, and says nothing.
        """
        queries = {}
        for view, state in states.items():
            covariance = self.statistics[view].covariance
            variance = np.einsum("bi,ij,bj->b", state, covariance, state, optimize=True)
            scale = np.sqrt(np.maximum(variance, 0.0))
            inverse = np.divide(
                self.weights[view], scale, where=scale > 0, out=np.zeros_like(scale)
            )
            queries[view] = (state * inverse[:, None]).astype(np.float32)
        return queries

    def score(
        self,
        queries: Mapping[str, Floats],
        candidates: Mapping[str, Floats],
        present: Mapping[str, NDArray[np.bool_]],
    ) -> Floats:
        """Scores (B, n) of all candidates for all queries; higher is better.

        Args:
            candidates: of each view, item vectors (n, W); rows of absent items are ignored.
            present: of each view, which of the n candidates have it.
        """
        total: Floats | None = None
        complete: NDArray[np.bool_] | None = None
        for view, query in queries.items():
            offset = query @ self.statistics[view].mean  # (B,)
            scores = (query @ candidates[view].T - offset[:, None]) * present[view]
            total = scores if total is None else total + scores
            # Where the history has no such view, nobody is scored in it, so nobody lacks it.
            unread = ~np.any(query, axis=1, keepdims=True)  # (B, 1)
            has: NDArray[np.bool_] = present[view] | unread  # (B, n)
            complete = has if complete is None else complete & has
        if total is None or complete is None:
            raise ValueError("a score needs at least one view")
        return np.where(complete, total, total * self.partial_factor).astype(np.float32)
