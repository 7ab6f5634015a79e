"""LLM vectors to item vectors: fixed statistics, then layers that RAT trains."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

InputScaling = Literal["centre", "standardise", "pca", "whiten"]
Activation = Literal["none", "gelu"]
PRINCIPAL = {"pca", "whiten"}  # those that may keep fewer directions


class Projection(nn.Module):
    """Maps LLM vectors (n, d_llm) to item vectors (n, dim), in training and in the service.

    The input is centred, standardised, turned to its principal directions (`pca`), or whitened in
    those, with statistics fitted once, on training items only (whitening: WhitenRec, arXiv
    2402.10602), then goes through linear layers. LLMEmb (arXiv 2409.19925) uses `pca` and two of
    them with nothing in between.

    Args:
        llm_dim: width of the LLM vectors.
        dims: widths after the scaling, after each further layer, and last the item vectors'; one
            width alone leaves the scaled vectors as they are. dims[0] is the number of principal
            directions kept by `pca` and `whiten`, else llm_dim.
        scaling: what is done to the input.
        unit: whether item vectors have length 1, for models trained on cosines.
        activation: between two layers.
    """

    mean: Tensor
    directions: Tensor

    def __init__(
        self,
        llm_dim: int,
        dims: Sequence[int],
        scaling: InputScaling = "whiten",
        unit: bool = True,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(f"dims {list(dims)} must name at least one width, each above 0")
        if dims[0] > llm_dim or (scaling not in PRINCIPAL and dims[0] != llm_dim):
            raise ValueError(f"dims[0] = {dims[0]} does not fit {scaling} of width {llm_dim}")
        self.scaling: InputScaling = scaling
        self.unit = unit
        self.dims = tuple(dims)
        self.register_buffer("mean", torch.zeros(llm_dim))
        # A diagonal for `standardise`, so that every scaling is one matrix.
        self.register_buffer("directions", torch.eye(llm_dim, dims[0]))  # (d_llm, dims[0])
        layers: list[nn.Module] = []
        for width, out in pairwise(dims):
            if layers and activation == "gelu":
                layers.append(nn.GELU())
            layers.append(nn.Linear(width, out))
        self.layers = nn.Sequential(*layers)

    @property
    def dim(self) -> int:
        """Width of the item vectors."""
        return self.dims[-1]

    def reset_parameters(self) -> None:
        """Fresh layers over the fitted scaling."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def fit(self, llm_vectors: NDArray[np.float32]) -> None:
        """Take the input statistics from the training items' LLM vectors (n, d_llm).

        After `whiten` the fitted vectors have mean 0 and the identity as covariance, in the
        directions that vary at all; directions without variance are mapped to 0.
        """
        vectors = llm_vectors.astype(np.float64)
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        kept = self.directions.shape[1]
        if self.scaling == "centre":
            directions = np.eye(len(mean))
        elif self.scaling == "standardise":
            deviation = centred.std(axis=0)
            directions = np.diag(np.divide(1, deviation, where=deviation > 0, out=0 * deviation))
        else:
            # eigh of the covariance: n may be smaller than the width.
            variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
            variances, axes = variances[::-1][:kept], axes[:, ::-1][:, :kept]
            varies = variances > variances[0] * 1e-9
            if self.scaling == "pca":
                directions = axes * varies
            else:
                deviation = np.sqrt(np.maximum(variances, 0))
                directions = axes * np.divide(1, deviation, where=varies, out=0 * variances)
        self.mean.copy_(torch.from_numpy(mean))
        self.directions.copy_(torch.from_numpy(directions))

    def scale(self, llm_vectors: Tensor) -> Tensor:
        """LLM vectors after the fitted scaling: (..., d_llm) to (..., dims[0])."""
        scaled: Tensor = (llm_vectors - self.mean) @ self.directions
        return scaled

    def content(self, llm_vectors: Tensor) -> Tensor:
        """What the words say, untouched by training: the scaled vectors at length 1."""
        return functional.normalize(self.scale(llm_vectors), dim=-1)

    def forward(self, llm_vectors: Tensor) -> Tensor:
        """Item vectors of LLM vectors: (..., d_llm) to (..., dim)."""
        return self.project(self.scale(llm_vectors))

    def project(self, scaled: Tensor) -> Tensor:
        """Item vectors of scaled vectors: (..., dims[0]) to (..., dim)."""
        items: Tensor = self.layers(scaled)
        return functional.normalize(items, dim=-1) if self.unit else items
