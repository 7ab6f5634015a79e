"""GRU4Rec on item vectors.

Shapes: B histories, L items, D = dim, H = hidden, P predictions.
"""

import torch
from torch import Tensor, nn

from models.attention import Dropout, check_shapes, next_places


class GRU4Rec(nn.Module):
    """A gated recurrent unit over a history of item vectors.

    Source: Hidasi et al. 2016, arXiv:1511.06939. Departs from it: vectors come in, not ids; a
    linear layer brings the hidden state back to the width of the item vectors; histories are
    read from their first item on, so that no recurrent step is spent on padding.

    Args:
        dim: width of item vectors and states (D).
        max_history: the longest history it can read (L).
        hidden: width of the recurrent state (H); 0 for dim.
        layers: recurrent layers.
        dropout: on the input and on the output.
    """

    def __init__(
        self, dim: int, max_history: int, hidden: int = 0, layers: int = 1, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.max_history = max_history
        self.gru = nn.GRU(dim, hidden or dim, layers, batch_first=True)
        self.out = nn.Linear(hidden or dim, dim)
        self.drop = Dropout(dropout)

    def states(self, items: Tensor, valid: Tensor) -> Tensor:
        """The state after every step (B, L, D); step t has seen items[:, :t + 1], no padding.

        Raises:
            ValueError: the shapes disagree, or the history is longer than max_history.
        """
        check_shapes(items, valid, self.max_history)
        length = items.shape[1]
        padding = length - valid.sum(dim=1, keepdim=True)  # (B, 1)
        steps = torch.arange(length, device=items.device)
        # Each history starts at step 0, what was padding before it follows behind it.
        started = ((steps + padding) % length).unsqueeze(-1).expand(items.shape)
        found, _ = self.gru(self.drop(items.gather(1, started)))  # (B, L, H)
        states = self.out(self.drop(found))
        back = ((steps - padding) % length).unsqueeze(-1).expand(states.shape)
        in_place: Tensor = states.gather(1, back)
        return in_place

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """The state after the latest item (B, D); see models.sequence.SequenceModel."""
        return self.states(items, valid)[:, -1]

    def predictions(self, items: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Every step's state, to find the next item; see models.sequence.SequenceModel."""
        told = valid[:, :-1]
        return self.states(items[:, :-1], told)[told], next_places(valid)
