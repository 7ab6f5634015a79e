"""Ranks held-out items as the service would: the same states, the same scorer.

Shapes: U users, T of them tested, B of them at once, n items, W = a view's own width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.bundle_writing import TrainedView
from models.neighbours import Neighbours
from models.scorer import Floats, Scorer, Stacked
from models.sequence import last_states
from training.interactions import Rows, Split
from training.metrics import ranks

CHUNK = 256  # users scored at once


@dataclass(frozen=True)
class Ranker:
    """Views, what followed what, and how they are summed.

    Attributes:
        views: those that are scored.
        scorer: over these views.
        neighbours: None where nothing is added for them.
    """

    views: Sequence[TrainedView]
    scorer: Scorer
    neighbours: Neighbours | None = None

    @classmethod
    def of(
        cls,
        views: Sequence[TrainedView],
        weights: Mapping[str, float],
        partial_factors: Mapping[str, float] | None = None,
        neighbours: Neighbours | None = None,
    ) -> "Ranker":
        """The ranker with these weights, by view and under `neighbours`; 0 leaves one out."""
        shown = [view for view in views if weights.get(view.name)]
        scorer = Scorer(
            {view.name: view.statistics for view in shown},
            {view.name: weights[view.name] for view in shown},
            partial_factors or {},
            weights.get("neighbours", 0.0),
        )
        return cls(shown, scorer, neighbours if weights.get("neighbours") else None)

    def scores(self, histories: Sequence[Rows]) -> Floats:
        """Scores (B, n) of the whole catalogue."""
        return self._scored(*self._asked(histories))

    def _asked(self, histories: Sequence[Rows]) -> tuple[dict[str, Floats], Floats]:
        """By view, the queries (B, W) of histories; and what follows them (B, n)."""
        queries = self.scorer.queries(states_of(self.views, histories))
        if self.neighbours:
            return queries, self.neighbours.table(histories)
        return queries, np.zeros((len(histories), 1), np.float32)

    def _scored(
        self, queries: Mapping[str, Floats], following: Floats, rows: Rows | None = None
    ) -> Floats:
        """Scores (B, n) of the catalogue, or (B, m) of some of its rows (m,)."""
        places = slice(None) if rows is None else rows - 1
        few = following[:, places] if self.neighbours else None
        if rows is None:
            return self.scorer.score_stacked(queries, self._stacked, few)
        return self.scorer.score(queries, *self._tables(places), few)

    @cached_property
    def _stacked(self) -> Stacked:
        return self.scorer.stack(*self._tables(slice(None)))

    def _tables(
        self, places: slice | Rows
    ) -> tuple[dict[str, Floats], dict[str, NDArray[np.bool_]]]:
        return (
            {view.name: view.items[places] for view in self.views},
            {view.name: view.present[places] for view in self.views},
        )

    def ranks(
        self,
        histories: Sequence[Rows],
        targets: Rows,
        *,
        banned: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Rank of each user's target (U,) in the full catalogue without the history.

        Args:
            banned: (n,), items that are no candidates at all.
        """
        found = np.empty(len(targets))
        for start in range(0, len(targets), CHUNK):
            users = slice(start, start + CHUNK)
            scores = self.scores(histories[users])
            excluded = excluded_of(histories[users], scores.shape[1])
            if banned is not None:
                excluded |= banned
            found[users] = ranks(scores, targets[users] - 1, excluded)
        return found

    def ranks_by_protocol(
        self, histories: Sequence[Rows], targets: Rows, negatives: NDArray[np.int32]
    ) -> dict[str, NDArray[np.float64]]:
        """Rank of each user's target (U,) in three protocols, from one scoring.

        `full`: in the catalogue without the history; `unfiltered`: with it, its own items at 0 in
        the content view, in which nothing is nearer to an item than itself; `sampled`: among the
        target and the user's negatives (U, m).
        """
        found = {name: np.empty(len(targets)) for name in ("full", "unfiltered", "sampled")}
        for start in range(0, len(targets), CHUNK):
            users = slice(start, start + CHUNK)
            asked, columns = histories[users], targets[users] - 1
            queries, following = self._asked(asked)
            scores = self._scored(queries, following)
            excluded = excluded_of(asked, scores.shape[1])
            found["full"][users] = ranks(scores, columns, excluded)
            few = np.concatenate([columns[:, None], negatives[users] - 1], axis=1)
            drawn = np.take_along_axis(scores, few, axis=1)
            first, nothing = np.zeros(len(few), np.int64), np.zeros(few.shape, bool)
            found["sampled"][users] = ranks(drawn, first, nothing)
            if "content" in queries:
                queries["content"] = np.zeros_like(queries["content"])
                for place, history in enumerate(asked):
                    own = {name: query[[place]] for name, query in queries.items()}
                    scores[place, history - 1] = self._scored(own, following[[place]], history)[0]
            found["unfiltered"][users] = ranks(scores, columns, np.zeros_like(excluded))
        return found


def states_of(views: Sequence[TrainedView], histories: Sequence[Rows]) -> dict[str, Floats]:
    """State (B, W) of each history in each view; items without the view are skipped in it."""
    states = {}
    for view in views:
        known = [history[view.present[history - 1]] for history in histories]
        told = [place for place, history in enumerate(known) if len(history)]
        state = np.zeros((len(histories), view.items.shape[1]), np.float32)
        if told:
            vectors = [view.items[known[place] - 1] for place in told]
            state[told] = last_states(view.model, vectors, view.max_history)
        states[view.name] = state
    return states


def excluded_of(histories: Sequence[Rows], items: int) -> NDArray[np.bool_]:
    """(B, n) bool, True where an item stands in the history."""
    excluded = np.zeros((len(histories), items), bool)
    for place, history in enumerate(histories):
        excluded[place, history - 1] = True
    return excluded


def sample_negatives(split: Split, most: int, seed: int) -> NDArray[np.int32]:
    """(T, m) int32: rows that each testing user never interacted with, before or in the test.

    Uniform, without repetition, from the seed alone, so that every model meets the same ones.
    m is `most`, or as many items as every testing user has left.

    Raises:
        ValueError: a user has none left.
    """
    items = len(split.counts) - 1
    seen = [
        np.unique(np.append(history, target))
        for history, target in zip(split.test_histories, split.test, strict=True)
    ]
    count = min(most, items - max(len(each) for each in seen))
    if count < 1:
        raise ValueError(
            f"a user has used all {items} items, so nothing is left to rank the test item among"
        )
    random = np.random.default_rng([seed, 1])
    drawn = np.empty((len(split.test), count), np.int32)
    for user, each in enumerate(seen):
        free = np.setdiff1d(np.arange(1, items + 1), each, assume_unique=True)
        drawn[user] = random.choice(free, count, replace=False)
    return drawn
