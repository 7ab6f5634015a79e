"""The one seam to sequential recommenders: a history of item vectors in, a state out.

Shapes: B histories, L items, D = dim.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.sasrec import SASRec


class SequenceModel(Protocol):
    """Reads histories of item vectors; owns no item table, so an unseen item needs no weights."""

    def __call__(self, items: Tensor, valid: Tensor) -> Tensor:
        """States (B, L, D) of items (B, L, D), oldest first, left-padded where valid is False.

        State [b, t] has seen items[b, :t + 1] and nothing later, and no padding; its dot
        product with an item vector is that item's score in this view, up to scale.
        """
        ...


class Constant(torch.nn.Module):
    """The state of a view that no history changes: -1 everywhere, so that it counts against.

    The `popularity` view uses it: its vectors are log(1 + interactions), and what is popular
    anyway is worth that much less as a personal recommendation.
    """

    def __init__(self, dim: int, max_history: int) -> None:
        super().__init__()
        self.dim, self.max_history = dim, max_history

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """-1 at every step (B, L, D)."""
        return torch.full((*valid.shape, self.dim), -1.0, device=items.device)


class Mean(torch.nn.Module):
    """The state is the mean of the items so far: what the history is about, nothing learnt.

    The `content` view uses it, with the latest few items.
    """

    def __init__(self, dim: int, max_history: int) -> None:
        super().__init__()
        self.dim, self.max_history = dim, max_history

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """Means (B, L, D) of the valid items up to each step; zeros before the first."""
        counted = valid.unsqueeze(-1).to(items.dtype)
        means: Tensor = (items * counted).cumsum(dim=1) / counted.cumsum(dim=1).clamp(min=1)
        return means


BUILDERS: dict[str, Callable[..., torch.nn.Module]] = {
    "constant": Constant,
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
    longest = max(len(history) for history in recent)
    items = np.zeros((len(recent), longest, recent[0].shape[1]), np.float32)
    valid = np.zeros((len(recent), longest), bool)
    for row, history in enumerate(recent):
        items[row, longest - len(history) :] = history
        valid[row, longest - len(history) :] = True
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        states = model(torch.from_numpy(items).to(device), torch.from_numpy(valid).to(device))
        last: NDArray[np.float32] = states[:, -1].float().cpu().numpy()
    return last
