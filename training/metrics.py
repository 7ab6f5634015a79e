"""Ranks of held-out items, and what is computed from them.

Shapes: U users, n candidates.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranks(
    scores: NDArray[np.float32], targets: NDArray[np.integer], excluded: NDArray[np.bool_]
) -> Floats:
    """The rank of each user's target among the candidates, 1 for the best: (U,) float.

    Ties take the mean rank: a scorer that gives every candidate the same score puts the target
    in the middle. A target that is itself excluded ranks at infinity, which every metric counts
    as a miss.

    >>> ranks(np.float32([[3, 1, 2]]), np.array([2]), np.zeros((1, 3), bool))
    array([2.])
    >>> ranks(np.float32([[1, 1, 1]]), np.array([0]), np.zeros((1, 3), bool))
    array([2.])

    Args:
        scores: (U, n).
        targets: (U,) columns of the targets.
        excluded: (U, n), candidates that may not be recommended, such as the history's.

    Raises:
        ValueError: a score that counts is not finite.
    """
    users = np.arange(len(scores))
    # Nearly always all are finite, which is seen faster than which ones count.
    if not np.isfinite(scores).all() and not np.isfinite(scores[~excluded]).all():
        raise ValueError("a score is not finite; a ranking by it would mean nothing")
    own = scores[users, targets][:, None]
    counted = np.where(excluded, -np.inf, scores)
    better = np.count_nonzero(counted > own, axis=1)
    equal = np.count_nonzero(counted == own, axis=1) - 1
    found = 1.0 + better + equal / 2
    return np.where(excluded[users, targets], np.inf, found)


def hit_rate(rank: Floats, k: int) -> Floats:
    """1 where the target is among the first k, else 0: (U,). Its mean is HR@k (= recall@k)."""
    return (rank <= k).astype(np.float64)


def ndcg(rank: Floats, k: int) -> Floats:
    """1 / log2(1 + rank) where the target is among the first k, else 0: (U,)."""
    return np.where(rank <= k, 1.0 / np.log2(1.0 + np.minimum(rank, k + 1)), 0.0)


def interval(values: Floats, draws: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean, by bootstrap over users. NaN where there are none."""
    if not len(values):
        return (float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    even = np.full(len(values), 1 / len(values))
    # How often each user is drawn, one draw after the other: memory stays at U.
    means = [random.multinomial(len(values), even) @ values / len(values) for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return (float(low), float(high))
