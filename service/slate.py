"""What is shown of a ranking, and in which order: less of the same, and items seldom shown."""

from collections.abc import Sequence

import numpy as np

from service.index import Floats, Mask

# Of a ranking so many are candidates, so that nothing comes that has not earned a place among them.
CANDIDATES = 100  # at least
CANDIDATES_PER_K = 4


def candidates_for(k: int) -> int:
    """How many of a ranking are to be arranged, where k are wanted."""
    return max(CANDIDATES, CANDIDATES_PER_K * k)


def arrange(
    scores: Floats,
    units: Floats,
    lifted: Sequence[Mask],
    k: int,
    *,
    diversity: float,
    explore: float,
    seed: int,
) -> list[tuple[int, bool]]:
    """The candidates that are shown, in order, and whether each was explored.

    Diversity is maximal marginal relevance (Carbonell and Goldstein 1998): each place goes to the
    candidate with the largest

        (1 - diversity) * relevance - diversity * (largest cosine with one that is shown already)

    where relevance is the score, brought to 0 for the last candidate and 1 for the first. The
    first place goes to the best. At 0 the order is that of the scores.

    Each place is, with probability `explore`, explored: only candidates of the first of the sets
    `lifted` that has any left stand for it. Who is not shown there may be shown later. Draws
    depend on the seed alone, and a place that is explored with one probability is so with any
    larger one. At 0 none is, at 1 all are, as long as there is whom to lift.

    Args:
        scores: (n,), descending.
        units: (n, W), of length 1 or 0.
        lifted: sets of candidates, (n,) each.
        k: how many are shown; fewer where there are fewer.
    """
    span = float(scores[0] - scores[-1]) if len(scores) else 0.0
    relevance = (scores - scores[-1:]) / (span or 1.0)
    left = np.ones(len(scores), bool)
    nearest: Floats | None = None
    shown: list[tuple[int, bool]] = []
    for draw in np.random.default_rng(seed).random(k)[: len(scores)].tolist():
        may, explored = left, False
        if draw < explore:
            some = next((each for each in lifted if (left & each).any()), None)
            if some is not None:
                may, explored = left & some, True
        worth = (1 - diversity) * relevance
        if nearest is not None:
            worth = worth - diversity * nearest
        at = int(np.where(may, worth, -np.inf).argmax())
        shown.append((at, explored))
        left[at] = False
        if diversity:
            cosines = units @ units[at]
            nearest = cosines if nearest is None else np.maximum(nearest, cosines)
    return shown
