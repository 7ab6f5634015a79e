"""SASRec on item vectors.

Shapes: B histories, L items, D = dim, P predictions.
"""

import torch
from torch import Tensor, nn

from models.attention import AttentionLayer, Dropout, check_shapes, next_places


class SASRec(nn.Module):
    """Self-attention over a history of item vectors, each step looking back only.

    Source: Kang and McAuley 2018, arXiv:1808.09781. Departs from it: vectors come in, not ids;
    layers are pre-norm with GELU; a position counts from the latest item backwards, so that
    padding moves nothing.

    Args:
        dim: width of item vectors and states (D).
        max_history: the longest history it can read (L).
        layers: self-attention layers.
        heads: attention heads; must divide dim.
        feed: width of the feed-forward, in multiples of dim.
        dropout: on the input, in the feed-forward, and on what each sublayer adds.
    """

    def __init__(
        self,
        dim: int,
        max_history: int,
        layers: int = 1,
        heads: int = 2,
        feed: int = 1,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(max_history, dim) * 0.02)  # [0]: latest item
        self.layers = nn.ModuleList(
            AttentionLayer(dim, heads, feed, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.drop = Dropout(dropout)

    def states(self, items: Tensor, valid: Tensor, latest_alone: bool = False) -> Tensor:
        """The state after every step (B, L, D); step t has seen items[:, :t + 1], no padding.

        Args:
            latest_alone: whether to give the last of them only, (B, 1, D).

        Raises:
            ValueError: the shapes disagree, or the history is longer than max_history.
        """
        check_shapes(items, valid, len(self.positions))
        length = items.shape[1]
        states = self.drop(items + self.positions[:length].flip(0))
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        # A padded position sees itself, so that no row of the softmax is empty (NaN).
        itself = torch.eye(length, dtype=torch.bool, device=items.device)
        visible = ((causal & valid[:, None, :]) | itself)[:, None]  # (B, 1, L, L)
        for position, layer in enumerate(self.layers, 1):
            states = layer(states, visible, latest_alone and position == len(self.layers))
        normed: Tensor = self.norm(states)
        return normed

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """The state after the latest item (B, D); see models.sequence.SequenceModel."""
        return self.states(items, valid, latest_alone=True)[:, -1]

    def predictions(self, items: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Every step's state, to find the next item; see models.sequence.SequenceModel."""
        told = valid[:, :-1]
        return self.states(items[:, :-1], told)[told], next_places(valid)
