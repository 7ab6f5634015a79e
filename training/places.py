"""Where items belong among what is bought together, and how well LLM vectors tell it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional

from models.projection import Projection
from training.config import NeighboursSpec
from training.interactions import Rows
from training.neighbours import fit_neighbours

DIM = 128  # of a place
PRINCIPAL = 224  # directions of the LLM vectors that a place is told from
HEAD_RATE = 1e-3
HEAD_DECAY = 0.05
WARM_EPOCHS = 6
WARM_BATCH = 512
WARM_RATE = 2e-3


def collaborative_places(
    histories: Sequence[Rows], items: int, spec: NeighboursSpec
) -> NDArray[np.float32]:
    """Each item's place in the graph of what follows what: (n, d <= 128) float32 unit rows.

    The graph is that of fit_neighbours, made symmetric and divided by the square roots of its
    degrees; places are its leading singular vectors times the roots of their strengths. An item
    without a neighbour in the histories has a row of zeros. The same histories give the same
    places.

    Args:
        items: size of the catalogue (n).
    """
    neighbours = fit_neighbours(histories, items, spec)
    froms, columns = np.nonzero(neighbours.rows)
    tos = neighbours.rows[froms, columns] - 1
    follows = sparse.csr_matrix((neighbours.weights[froms, columns], (froms, tos)), (items, items))
    together = follows + follows.T
    degree = np.asarray(together.sum(axis=1)).ravel()
    scale = sparse.diags(np.where(degree > 0, degree.clip(1e-9) ** -0.5, 0))
    left, strengths, _ = randomized_svd(
        scale @ together @ scale, min(DIM, items), n_iter=10, random_state=0
    )
    strengths = np.where(strengths > 1e-6 * strengths.max(initial=0), strengths, 0)
    places = left * np.sqrt(strengths)
    length = np.linalg.norm(places, axis=1, keepdims=True)
    known = (length > 1e-6) & (degree > 0)[:, None]
    return np.where(known, places / length.clip(1e-6), 0).astype(np.float32)


class PlaceHead(nn.Module):
    """Tells an item's place from its LLM vector, through a linear map of the whitened vector.

    The whitening is of the vectors that it is made with, before the LLM is tuned, and stays, so
    that the target does not move with what it is asked of.

    Args:
        vectors: (m, D) float32, untuned, of the items that have a place.
        places: (m, d) unit rows, theirs.
        temperature: divides the cosines.
    """

    places: Tensor

    def __init__(
        self,
        vectors: NDArray[np.float32],
        places: NDArray[np.float32],
        temperature: float,
        seed: int,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = min(PRINCIPAL, vectors.shape[1])
        self.whitening = Projection(vectors.shape[1], (width,), "whiten")
        self.whitening.fit(vectors)
        self.head = nn.Linear(width, places.shape[1])
        self.temperature = temperature
        self.register_buffer("places", torch.tensor(places))
        self._warm(torch.tensor(vectors), seed)

    def forward(self, vectors: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The mean cross-entropy of finding the places of `rows` (B,) among all m of them.

        Args:
            vectors: (B, D), with gradients if they are on.
        """
        told = functional.normalize(self.head(self.whitening.scale(vectors)), dim=1)  # (B, d)
        logits = told @ self.places.T / self.temperature  # (B, m)
        return functional.cross_entropy(logits, torch.tensor(rows, device=logits.device))

    def _warm(self, vectors: Tensor, seed: int) -> None:
        """Learn to read untuned vectors first, or the LLM is tuned towards a random head."""
        optimiser = torch.optim.AdamW(self.head.parameters(), lr=WARM_RATE, weight_decay=HEAD_DECAY)
        random = np.random.default_rng(seed)
        batches = max(1, len(vectors) // WARM_BATCH)
        for _ in range(WARM_EPOCHS):
            for rows in np.array_split(random.permutation(len(vectors)), batches):
                loss = self(vectors[torch.tensor(rows)], rows)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
