"""Ranks held-out items as the service would: the same states, the same scorer.

Shapes: U users, B of them at once, n items, W = a view's own width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import TrainedView
from models.scorer import Floats, Scorer
from models.sequence import last_states
from training.interactions import Rows
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
            excluded = np.zeros(scores.shape, bool)
            for place, history in enumerate(histories[users]):
                excluded[place, history - 1] = True
            found[users] = ranks(scores, columns, excluded)
        else:
            few = np.concatenate([columns[:, None], negatives[users] - 1], axis=1)
            scores = np.take_along_axis(scores, few, axis=1)
            nothing = np.zeros(scores.shape, bool)
            found[users] = ranks(scores, np.zeros(len(scores), int), nothing)
    return found
