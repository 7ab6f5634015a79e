"""Ranks held-out items as the service would: the same states, the same scorer.

Shapes: U users, B of them at once, n items, W = a view's own width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import TrainedView
from models.scorer import Floats, Scorer
from models.sequence import last_states
from training.interactions import Rows, Split
from training.metrics import ranks


def scorer_of(
    views: list[TrainedView], weights: Mapping[str, float], partial_factor: float
) -> Scorer:
    """The Scorer over these views with these weights."""
    return Scorer(
        {view.name: view.statistics for view in views},
        {view.name: weights[view.name] for view in views},
        partial_factor,
    )


CHUNK = 256  # users scored at once


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


def sample_negatives(split: Split, count: int, seed: int) -> NDArray[np.int32]:
    """(U, count) int32: rows that the user never interacted with, in training or after.

    Uniform, without repetition, from the seed alone, so that every model meets the same ones.

    Raises:
        ValueError: a user has fewer unseen items than that.
    """
    items = len(split.counts) - 1
    random = np.random.default_rng([seed, 1])
    drawn = np.empty((len(split.train), count), np.int32)
    for user, history in enumerate(split.train):
        seen = np.concatenate([history, [split.validation[user], split.test[user]]])
        free = np.setdiff1d(np.arange(1, items + 1), seen)
        if len(free) < count:
            raise ValueError(
                f"evaluate.negatives is {count}, but a user has only {len(free)} unseen items"
            )
        drawn[user] = random.choice(free, count, replace=False)
    return drawn


def target_ranks(
    views: Sequence[TrainedView],
    scorer: Scorer | None,
    histories: Sequence[Rows],
    targets: Rows,
    negatives: NDArray[np.int32] | None = None,
) -> NDArray[np.float64]:
    """Rank of each user's target (U,): in the full catalogue without the history, or among
    the target and its stored negatives (U, m).

    Args:
        scorer: None for a single view, whose weight changes no ranking.
    """
    if scorer is None:
        (view,) = views
        scorer = Scorer({view.name: view.statistics}, {view.name: 1.0})
    tables = {view.name: view.items for view in views}
    present = {view.name: view.present for view in views}
    found = np.empty(len(targets))
    for start in range(0, len(targets), CHUNK):
        users = slice(start, start + CHUNK)
        queries = scorer.queries(states_of(views, histories[users]))
        scores = scorer.score(queries, tables, present)  # (B, n)
        columns = targets[users] - 1
        if negatives is None:
            found[users] = ranks(scores, columns, excluded_of(histories[users], scores.shape[1]))
        else:
            few = np.concatenate([columns[:, None], negatives[users] - 1], axis=1)
            scores = np.take_along_axis(scores, few, axis=1)
            nothing = np.zeros(scores.shape, bool)
            found[users] = ranks(scores, np.zeros(len(scores), int), nothing)
    return found
