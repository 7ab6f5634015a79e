"""What LLM vectors recommend by themselves, before anything is trained on them."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle_writing import TrainedView
from models.projection import Projection
from models.sequence import build
from training.config import ContentView, TextView
from training.interactions import Split
from training.metrics import ndcg
from training.ranking import Ranker

K = 10


def content_view(
    projection: Projection,
    llm_vectors: NDArray[np.float32],
    trained: NDArray[np.bool_],
    spec: ContentView,
) -> TrainedView:
    """The scaled LLM vectors themselves (n, dims[0]), read as the mean of the latest items."""
    with torch.inference_mode():
        items = projection.content(torch.from_numpy(llm_vectors)).numpy()
    options = {"decay": spec.decay}
    return TrainedView(
        name="content",
        source="content",
        sequence_model="mean",
        options=options,
        max_history=spec.latest,
        weight=1.0,
        model=build("mean", items.shape[1], spec.latest, **options),
        items=items,
        present=np.ones(len(items), bool),
        trained=trained,
    )


def content_quality(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], split: Split
) -> dict[str, float]:
    """What the LLM vectors of some items do by themselves, on the validation split.

    The content view over whitened vectors, among these items: `validation_ndcg10`, of all users
    whose validation item is one of them, and `validation_ndcg10_tail`, of those whose is in the
    tail, too; 0 where there are none; and `mean_cosine` of two items' vectors, 1 where all point
    the same way. The view is that of the default settings, whatever a run's are, so that a tuned
    LLM depends on nothing that is chosen after it.

    Args:
        vectors: (m, D) LLM vectors.
        rows: (m,) their places in the catalogue, ascending from 0.
    """
    everywhere = np.zeros((len(split.counts) - 1, vectors.shape[1]), np.float32)
    everywhere[rows] = vectors
    known = np.zeros(len(everywhere), bool)
    known[rows] = True
    width = min(TextView().principal, vectors.shape[1])
    projection = Projection(vectors.shape[1], (width,), "whiten")
    projection.fit(vectors)
    view = content_view(projection, everywhere, known, ContentView())
    asked = split.validation_questions(np.flatnonzero(known[split.validation - 1]))
    ranks = Ranker.of([view], {"content": 1.0}).ranks(*asked, banned=~known)
    gains = ndcg(ranks, K)
    tail = ~split.head()[asked.targets]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    m = len(unit)
    cosine = (float(np.square(unit.sum(axis=0)).sum()) - m) / (m * (m - 1))
    return {
        "validation_ndcg10": _mean(gains),
        "validation_ndcg10_tail": _mean(gains[tail]),
        "mean_cosine": round(cosine, 5),
    }


def _mean(gains: NDArray[np.float64]) -> float:
    return round(float(gains.mean()), 5) if len(gains) else 0.0
