"""What turns a history and a candidate into one number: their views, and what followed what.

The only implementation: training's evaluation and the service rank with it. Shapes: B
histories, n candidates, W = a view's own width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
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


@dataclass(frozen=True)
class Stacked:
    """Candidates as one product scores them; made by Scorer.stack.

    Attributes:
        views: their names, in the order of the columns.
        vectors: (M, n) float32, the numbers of all views one below the other, zeros where an item
            lacks one, and below them a row for each view that is 1 where an item has it.
        lacking: (m,) the items that lack a view; usually they are few, or none.
        theirs: (M, m) float32, their columns of `vectors`.
        absent: (V, m) float32, 1 where such an item lacks a view.
    """

    views: tuple[str, ...]
    vectors: Floats
    lacking: NDArray[np.int64]
    theirs: Floats
    absent: Floats


class Scorer:
    """Sums, over the views an item has, its standardised score in each, and its neighbour score.

    In one view a candidate x scores (s . (x - mean)) / sqrt(s' C s) for the state s: its dot
    product, standardised over the training items for this very history. Mean and covariance C
    are stored, so adding an item changes no other item's score, and the scale of s is irrelevant.
    Summing standardised scores of separately trained views follows EnsRec (arXiv 2512.17820).
    What models.neighbours.Neighbours says of a candidate is added as it is: 0 for most items, so
    an item that no history has met loses nothing by it.

    Args:
        statistics: of each view, over training items.
        weights: of each view in the sum; the same names.
        partial_factors: by view, what the score of an item that lacks some other view is
            multiplied with, as its sum would otherwise stand on another scale than that of items
            with all of them; 1 where nothing is said.
        neighbours_weight: of the neighbour scores; 0 leaves them out.

    Raises:
        ValueError: the names differ, or a weight is no positive number.
    """

    def __init__(
        self,
        statistics: Mapping[str, ViewStatistics],
        weights: Mapping[str, float],
        partial_factors: Mapping[str, float] | None = None,
        neighbours_weight: float = 0.0,
    ) -> None:
        if set(statistics) != set(weights):
            raise ValueError(f"weights for {sorted(weights)}, statistics for {sorted(statistics)}")
        for view, weight in weights.items():
            if not (np.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of view {view!r} is {weight}; it must be positive")
        if not (np.isfinite(neighbours_weight) and neighbours_weight >= 0):
            raise ValueError(
                f"the weight of neighbours is {neighbours_weight}; it must be 0 or more"
            )
        self.statistics = dict(statistics)
        self.weights = dict(weights)
        self.partial_factors = {view: (partial_factors or {}).get(view, 1.0) for view in weights}
        self.neighbours_weight = neighbours_weight

    def queries(self, states: Mapping[str, Floats]) -> dict[str, Floats]:
        """States (B, W) of each view to queries (B, W): weighted, and standardised per history.

        A state of zeros - no item of the history has the view - stays zeros, and says nothing.
        """
        queries = {}
        for view, state in states.items():
            covariance = self.statistics[view].covariance
            variance = ((state @ covariance) * state).sum(axis=1)
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
        following: Floats | None = None,
    ) -> Floats:
        """Scores (B, n) of all candidates for all queries; higher is better.

        Args:
            candidates: of each view, item vectors (n, W); rows of absent items are ignored.
            present: of each view, which of the n candidates have it.
            following: neighbour scores (B, n) of the candidates; None where there are none.
        """
        few = {view: candidates[view] for view in queries}
        return self.score_stacked(queries, self.stack(few, present), following)

    @staticmethod
    def stack(tables: Mapping[str, Floats], present: Mapping[str, NDArray[np.bool_]]) -> Stacked:
        """Candidates with, in each view, vectors (n, W); rows of absent items are ignored.

        Raises:
            ValueError: there is no view.
        """
        if not tables:
            raise ValueError("a score needs at least one view")
        views = tuple(tables)
        has = np.stack([present[view] for view in views])  # (V, n)
        shown = [np.where(present[view], tables[view].T, np.float32(0)) for view in views]
        vectors = np.concatenate([*shown, has], dtype=np.float32)
        lacking = np.flatnonzero(~has.all(axis=0))
        absent = (~has[:, lacking]).astype(np.float32)
        return Stacked(views, vectors, lacking, vectors[:, lacking], absent)

    def score_stacked(
        self, queries: Mapping[str, Floats], candidates: Stacked, following: Floats | None = None
    ) -> Floats:
        """As `score`, of candidates that are stacked already, in the views of the queries."""
        rows = len(next(iter(queries.values())))
        if rows == 1:
            # The products of one row add up in another order than those of several, so that a
            # history's ties would depend on its company.
            queries = {view: np.repeat(query, 2, axis=0) for view, query in queries.items()}
        views = candidates.views
        scores = _product(self._side_by_side(queries, views), candidates.vectors)
        if len(candidates.lacking):
            scaled = self._side_by_side(queries, views, self.partial_factors)
            partial = _product(scaled, candidates.theirs)
            # Where the history has no such view, nobody is scored in it, so nobody lacks it.
            told = np.stack([queries[view].any(axis=1) for view in views], axis=1)  # (B, V)
            incomplete = told.astype(np.float32) @ candidates.absent > 0
            whole = scores[:, candidates.lacking]
            scores[:, candidates.lacking] = np.where(incomplete, partial, whole)
        scores = scores[:rows]
        if following is not None and self.neighbours_weight:
            scores += np.float32(self.neighbours_weight) * following
        return scores

    def _side_by_side(
        self,
        queries: Mapping[str, Floats],
        views: tuple[str, ...],
        factors: Mapping[str, float] | None = None,
    ) -> Floats:
        """Queries (B, M) for Stacked.vectors: s of each view, and -(s . mean) of each."""
        parts = [queries[view] * np.float32((factors or {}).get(view, 1.0)) for view in views]
        means = [
            -(part @ self.statistics[view].mean)[:, None]
            for view, part in zip(views, parts, strict=True)
        ]
        return np.concatenate([*parts, *means], axis=1)


def _product(left: Floats, right: Floats) -> Floats:
    """The matrix product; of few rows with many columns torch's is twice as fast as numpy's."""
    product: Floats = torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    return product
