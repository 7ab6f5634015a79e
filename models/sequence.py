"""The one seam to sequential recommenders: a history of item vectors in, a state out.

Shapes: B histories, L items, D = dim, P predictions.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bert4rec import BERT4Rec
from models.gru4rec import GRU4Rec
from models.sasrec import SASRec


class SequenceModel(Protocol):
    """Reads histories of item vectors; owns no item table, so an unseen item needs no weights."""

    def __call__(self, items: Tensor, valid: Tensor) -> Tensor:
        """The state (B, D) after histories (B, L, D), oldest first, left-padded where not valid.

        Padding changes nothing. The state's dot product with an item vector is that item's
        score in this view, up to scale.
        """
        ...

    def predictions(self, items: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What training learns from histories (B, L, D): states (P, D), and what each is to find.

        That is the place (P,) of an item in the flattened histories, b * L + t. No state has
        seen the item that it is to find.
        """
        ...


class Mean(torch.nn.Module):
    """The state is the mean of the items: what the history is about, nothing learnt.

    The `content` view uses it, with the latest few items.

    Args:
        decay: how much less an item counts than the next younger one.
    """

    def __init__(self, dim: int, max_history: int, decay: float = 1.0) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise ValueError(f"decay {decay} must be above 0 and at most 1")
        self.dim, self.max_history, self.decay = dim, max_history, decay

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """Weighted means (B, D) of the valid items; zeros where there are none."""
        ages = torch.arange(valid.shape[1] - 1, -1, -1, device=items.device)
        counted = (valid * self.decay**ages).unsqueeze(-1).to(items.dtype)
        total = counted.sum(dim=1)
        means: Tensor = (items * counted).sum(dim=1) / torch.where(total > 0, total, 1.0)
        return means


TOGETHER = 64  # histories that are read at once

BUILDERS: dict[str, Callable[..., torch.nn.Module]] = {
    "bert4rec": BERT4Rec,
    "gru4rec": GRU4Rec,
    "mean": Mean,
    "sasrec": SASRec,
}


def build(name: str, dim: int, max_history: int, **options: float) -> torch.nn.Module:
    """A new SequenceModel by its registered name.

    Raises:
        ValueError: no model has this name, or it does not take these options.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown sequence model {name!r}; known: {', '.join(sorted(BUILDERS))}")
    try:
        return BUILDERS[name](dim=dim, max_history=max_history, **options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def last_states(
    model: torch.nn.Module, histories: Sequence[NDArray[np.float32]], max_history: int
) -> NDArray[np.float32]:
    """The state after each history: (B, D) float32.

    Args:
        histories: item vectors (L, D) of each, oldest first, at least one; of a history longer
            than `max_history` the latest are read.
    """
    recent = [history[-max_history:] for history in histories]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    width = recent[0].shape[1]
    found = np.empty((len(recent), width), np.float32)
    # Those of like length together: most are short, and padding costs as much as items do.
    order = np.argsort([len(history) for history in recent], kind="stable")
    for start in range(0, len(order), TOGETHER):
        rows = order[start : start + TOGETHER]
        longest = len(recent[rows[-1]])
        items = np.zeros((len(rows), longest, width), np.float32)
        valid = np.zeros((len(rows), longest), bool)
        for place, row in enumerate(rows):
            items[place, longest - len(recent[row]) :] = recent[row]
            valid[place, longest - len(recent[row]) :] = True
        with torch.inference_mode():
            states = model(torch.from_numpy(items).to(device), torch.from_numpy(valid).to(device))
        found[rows] = states.float().cpu().numpy()
    return found
