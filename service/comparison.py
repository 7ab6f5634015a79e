"""How another bundle answers beside the one that is served, in numbers, before it is served.

On a sample of the catalogue: n items, of each bundle its vectors (n, W) in the view in which items
are alike by what they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.index import Floats, Snapshot

SAMPLE = 2000  # items
AT_ONCE = 50  # of them, whose inner products with all are looked at together
HISTORIES = 50
HISTORY = 5  # items of a history
K = 25  # recommended items that are compared
NEAREST = 10  # neighbours, of each item of the sample
HUBS = 0.01  # the share of the items that is asked how much it takes of all neighbours

Recommend = Callable[[Sequence[str], int], list[tuple[str, float]]]
Ints = NDArray[np.int64]


class Lengths(BaseModel):
    """Of the vectors of a view, over the sample."""

    mean: float
    deviation: float
    least: float
    greatest: float


class Side(BaseModel):
    """One of the two bundles, over the sample."""

    lengths: dict[str, Lengths] = Field(description="By view: lengths of the items' vectors.")
    hub_skewness: float | None = Field(
        description=f"Of how often each item is among the {NEAREST} nearest of another: 0 where "
        "all are as often, and the larger, the more a few items are near everything. null where "
        "too few items can be compared."
    )
    hub_share: float | None = Field(
        description="Of all those places, what the 1 % of the items take that have the most."
    )


class Comparison(BaseModel):
    """The bundle that is served beside another one."""

    items: int = Field(description="In the sample.")
    histories: int = Field(
        description="For which both recommend; each is an item and those nearest to it."
    )
    k: int = Field(K, description="How many are recommended to each.")
    overlap: float | None = Field(
        description="Of what the served one recommends, the share that the other does, too."
    )
    score_drift: float | None = Field(
        description="Of items that both recommend, the mean of how far the scores are apart."
    )
    score_deviation: float | None = Field(
        description="Of the scores of the served one, to hold against `score_drift`."
    )
    neighbours_overlap: float | None = Field(
        description=f"Of each item's {NEAREST} nearest, the share that are it in both."
    )
    parity: float = Field(description="The self-test of the other one; see GET /info.")
    served: Side
    other: Side


class Bundled(NamedTuple):
    """What one bundle makes of the catalogue.

    Attributes:
        alike: the view in which its items are alike.
        recommend: the k items that it recommends for a history, with their scores.
    """

    snapshot: Snapshot
    alike: str
    recommend: Recommend


def compare(
    sample: Sequence[str],
    served: Bundled,
    other: Bundled,
    parity: float,
    pause: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare the answers of two bundles on a sample of item ids.

    Args:
        pause: is called after some work; may raise.
    """
    ids, before, after = _alike(_pausing(sample, pause), served, other)
    near_before, near_after = _nearest(before, pause), _nearest(after, pause)
    overlaps, drifts, scores = [], [], []
    step = max(1, len(ids) // HISTORIES)
    for start in range(0, len(ids), step)[:HISTORIES] if len(ids) > HISTORY else ():
        history = [ids[start], *(ids[at] for at in near_before[start, : HISTORY - 1])]
        old, new = dict(served.recommend(history, K)), dict(other.recommend(history, K))
        if old:
            overlaps.append(len(old.keys() & new.keys()) / len(old))
            drifts += [abs(new[each] - old[each]) for each in old.keys() & new.keys()]
            scores += list(old.values())
    both = [
        len(set(mine) & set(theirs)) / len(mine)
        for mine, theirs in zip(near_before.tolist(), near_after.tolist(), strict=True)
        if mine
    ]
    return Comparison(
        items=len(sample),
        histories=len(overlaps),
        overlap=_mean(overlaps),
        score_drift=_mean(drifts),
        score_deviation=round(float(np.std(scores)), 4) if scores else None,
        neighbours_overlap=_mean(both),
        parity=parity,
        served=_side(_pausing(sample, pause), served.snapshot, near_before),
        other=_side(_pausing(sample, pause), other.snapshot, near_after),
    )


def _pausing(sample: Sequence[str], pause: Callable[[], None]) -> Iterator[str]:
    """The sample, with a pause now and then."""
    for at, item_id in enumerate(sample):
        if at % AT_ONCE == 0:
            pause()
        yield item_id


def _alike(
    sample: Iterable[str], served: Bundled, other: Bundled
) -> tuple[list[str], Floats, Floats]:
    """Those of the sample whom both can compare, and their vectors in both."""
    ids, before, after = [], [], []
    for item_id in sample:
        mine = (served.snapshot.views(item_id) or {}).get(served.alike)
        theirs = (other.snapshot.views(item_id) or {}).get(other.alike)
        if mine is not None and theirs is not None:
            ids.append(item_id)
            before.append(mine)
            after.append(theirs)
    return ids, np.array(before, np.float32), np.array(after, np.float32)


def _nearest(vectors: Floats, pause: Callable[[], None]) -> Ints:
    """Of each item the nearest others (n, k), nearest first; k is NEAREST or fewer."""
    count = len(vectors)
    if count < 2:
        return np.empty((count, 0), np.int64)
    nearest = np.empty((count, min(NEAREST, count - 1)), np.int64)
    for start in range(0, count, AT_ONCE):
        pause()
        products = vectors[start : start + AT_ONCE] @ vectors.T
        rows = np.arange(len(products))
        products[rows, start + rows] = -np.inf  # itself
        order = np.argsort(-products, axis=1, kind="stable")
        nearest[start : start + AT_ONCE] = order[:, : nearest.shape[1]]
    return nearest


def _side(sample: Iterable[str], snapshot: Snapshot, nearest: Ints) -> Side:
    lengths: dict[str, list[float]] = {}
    for item_id in sample:
        views: Mapping[str, Floats] = snapshot.views(item_id) or {}
        for view, vector in views.items():
            lengths.setdefault(view, []).append(float(np.linalg.norm(vector)))
    skewness = share = None
    if nearest.size:
        counts = np.bincount(nearest.ravel(), minlength=len(nearest)).astype(np.float64)
        spread = counts.std()
        apart = counts - counts.mean()
        skewness = round(float((apart**3).mean() / spread**3), 4) if spread else 0.0
        most = np.sort(counts)[::-1][: max(1, round(HUBS * len(counts)))]
        share = round(float(most.sum() / counts.sum()), 4)
    return Side(
        lengths={
            view: Lengths(
                mean=round(float(np.mean(found)), 4),
                deviation=round(float(np.std(found)), 4),
                least=round(min(found), 4),
                greatest=round(max(found), 4),
            )
            for view, found in lengths.items()
        },
        hub_skewness=skewness,
        hub_share=share,
    )


def _mean(numbers: Sequence[float]) -> float | None:
    return round(float(np.mean(numbers)), 4) if numbers else None
