"""Fits models.neighbours.Neighbours: what followed what in the training histories."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from models.neighbours import Neighbours
from training.config import NeighboursSpec
from training.interactions import Rows


def fit_neighbours(histories: Sequence[Rows], items: int, spec: NeighboursSpec) -> Neighbours:
    """The neighbours of every training item.

    Of a pair in one history, g steps apart, the later item follows the earlier one with
    gap_decay^(g - 1), and the earlier the later with `backward` times as much, for g up to
    `window`. A sum over all histories is divided by count(item)^b count(neighbour)^a, which keeps
    the popular from being everybody's neighbour; the `per_item` heaviest are kept.

    Args:
        items: size of the catalogue (n).
    """
    froms, tos, values = [], [], []
    for gap in range(1, spec.window + 1):
        long = [history for history in histories if len(history) > gap]
        if not long:
            break
        froms.append(np.concatenate([history[:-gap] for history in long]) - 1)
        tos.append(np.concatenate([history[gap:] for history in long]) - 1)
        values.append(np.full(len(tos[-1]), spec.gap_decay ** (gap - 1), np.float32))
    rows = np.zeros((items, spec.per_item), np.int32)
    weights = np.zeros((items, spec.per_item), np.float32)
    if froms:
        places = (np.concatenate(froms), np.concatenate(tos))
        forward = sparse.csr_matrix((np.concatenate(values), places), shape=(items, items))
        counts = np.bincount(np.concatenate(histories) - 1, minlength=items).clip(1)
        follows = (
            sparse.diags(counts**-spec.item_power) @ (forward + spec.backward * forward.T).tocsr()
        )
        follows = (follows @ sparse.diags(counts**-spec.neighbour_power)).tocsr()
        follows.setdiag(0)
        for item in range(items):
            span = slice(follows.indptr[item], follows.indptr[item + 1])
            found, value = follows.indices[span], follows.data[span]
            # Heaviest first; ties by row, so that the same data gives the same neighbours.
            best = np.lexsort((found, -value))[: spec.per_item]
            best = best[value[best] > 0]
            rows[item, : len(best)] = found[best] + 1
            weights[item, : len(best)] = value[best]
    return Neighbours(rows, weights, spec.history_decay, spec.latest)
