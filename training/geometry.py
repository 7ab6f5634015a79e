"""How a set of item vectors lies in space: its cones, hubs, neighbours and its picture in a plane.

Shapes: n items, D = width, K neighbours. Nearness is the cosine.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.plane import Plane

Floats = NDArray[np.float32]
K = 10  # neighbours that hubs are counted among
CHUNK = 1024  # items compared with all others at once


class Geometry(NamedTuple):
    """How evenly vectors use their space.

    Attributes:
        mean_cosine: anisotropy: the mean cosine of two different items; 0 where they point
            everywhere, 1 where all point the same way.
        hubness: the skewness of the k-occurrence, k = 10: an item's k-occurrence is among how many
            other items' ten nearest it stands, 10 on average; its skewness is 0 where it is
            spread evenly and grows with hubs that are near to everything (Radovanovic et al.,
            JMLR 2010).
        most: the largest k-occurrence.
        never: share of the items that are among no other item's ten nearest.
    """

    mean_cosine: float
    hubness: float
    most: int
    never: float


def unit(vectors: Floats) -> Floats:
    """The vectors (n, D) at length 1; one of length 0 stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = (vectors / lengths.clip(1e-12)).astype(np.float32)
    return scaled


def nearest(vectors: Floats, k: int) -> NDArray[np.int64]:
    """(n, min(k, n - 1)): of each item the places of the nearest others, the nearest first.

    Equal cosines keep the order of the places.
    """
    scaled = unit(vectors)
    k = min(k, len(scaled) - 1)
    found = np.empty((len(scaled), k), np.int64)
    for start in range(0, len(scaled), CHUNK):
        block = scaled[start : start + CHUNK] @ scaled.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        found[start : start + len(block)] = np.argsort(-block, axis=1, kind="stable")[:, :k]
    return found


def geometry(vectors: Floats) -> Geometry:
    """Of at least three vectors (n, D)."""
    n = len(vectors)
    total = unit(vectors).astype(np.float64).sum(axis=0)
    length = float(np.square(unit(vectors).astype(np.float64)).sum())
    counts = np.bincount(nearest(vectors, K).ravel(), minlength=n)
    away = counts - counts.mean()
    spread = float(away.std())
    return Geometry(
        mean_cosine=(float(np.square(total).sum()) - length) / (n * (n - 1)),
        hubness=float((away**3).mean() / spread**3) if spread else 0.0,
        most=int(counts.max()),
        never=float((counts == 0).mean()),
    )


def plane(vectors: Floats, like: Floats | None = None) -> tuple[Floats, float]:
    """The vectors at length 1, in the plane of their two first principal components.

    Args:
        like: (n, 2), an earlier picture of the same items; this one is turned and mirrored to lie
            as that does, which changes no distance.

    Returns:
        (n, 2) float32, and the share of the variance that the plane shows.
    """
    found = Plane.fit(unit(vectors))
    centred = unit(vectors).astype(np.float64) - found.mean
    lengths = np.linalg.norm(found.axes, axis=0)
    points = centred @ (found.axes / np.where(lengths > 0, lengths, 1))
    variance = float(np.square(centred).sum())
    shown = float(np.square(points).sum()) / variance if variance else 1.0
    if like is not None:
        turn, _, back = np.linalg.svd(points.T @ like.astype(np.float64))
        points = points @ (turn @ back)
    return points.astype(np.float32), shown
