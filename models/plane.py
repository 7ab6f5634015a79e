"""A picture of the catalogue: where items stand that are near each other by what they are."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Plane:
    """The two directions in which the training items' vectors differ most (PCA).

    A picture, not a measure: most of what tells items apart lies in the other directions.

    Args:
        mean: (W,) float32, what stands in the middle.
        axes: (W, 2) float32; a vector less the mean, times these, is where it stands.
    """

    def __init__(self, mean: Floats, axes: Floats) -> None:
        self.mean = mean
        self.axes = axes

    @classmethod
    def fit(cls, vectors: Floats) -> "Plane":
        """The plane of vectors (n, W), the farthest of which stands at -1 or 1 on an axis.

        Both axes have one scale. The largest number of each direction is positive, so that equal
        vectors always give equal planes.
        """
        wide = vectors.astype(np.float64)
        mean = wide.mean(axis=0)
        centred = wide - mean
        _, directions = np.linalg.eigh(centred.T @ centred)
        axes = np.zeros((len(mean), 2))
        first = directions[:, ::-1][:, :2]  # a view of one number has but one
        axes[:, : first.shape[1]] = first
        largest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
        axes *= np.where(largest < 0, -1, 1)
        farthest = np.abs(centred @ axes).max(initial=0)
        if farthest > 0:
            axes /= farthest
        return cls(mean.astype(np.float32), axes.astype(np.float32))

    def places(self, vectors: Floats) -> Floats:
        """Where vectors (n, W) stand: (n, 2) in [-1, 1]; what lies beyond stands at the edge."""
        found: Floats = np.clip((vectors - self.mean) @ self.axes, -1, 1)
        return found
