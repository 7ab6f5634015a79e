"""BERT4Rec on item vectors.

Shapes: B histories, L items, D = dim, P predictions.
"""

import torch
from torch import Tensor, nn

from models.attention import AttentionLayer, Dropout, check_shapes


class BERT4Rec(nn.Module):
    """Self-attention in both directions, which fills in masked items of a history.

    Source: Sun et al. 2019, arXiv:1904.06690. A history's state is what stands at a mask put
    after its latest item. Half of the training histories have items masked at random, the other
    half their latest item only, as at that mask. Departs from the paper: vectors come in, not
    ids; layers are pre-norm; a position counts from the latest item backwards, so that padding
    moves nothing.

    Args:
        dim: width of item vectors and states (D).
        max_history: the longest history it can read (L).
        layers: self-attention layers.
        heads: attention heads; must divide dim.
        feed: width of the feed-forward, in multiples of dim.
        dropout: on the input, in the feed-forward, and on what each sublayer adds.
        masked: share of the items that are masked at random.
    """

    def __init__(
        self,
        dim: int,
        max_history: int,
        layers: int = 2,
        heads: int = 2,
        feed: int = 1,
        dropout: float = 0.3,
        masked: float = 0.3,
    ) -> None:
        super().__init__()
        if not 0 < masked < 1:
            raise ValueError(f"masked {masked} must lie between 0 and 1")
        self.masked = masked
        self.mask = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(max_history + 1, dim) * 0.02)  # [0]: latest
        self.layers = nn.ModuleList(
            AttentionLayer(dim, heads, feed, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.drop = Dropout(dropout)

    def _states(self, items: Tensor, valid: Tensor) -> Tensor:
        """What stands at every position (B, L, D), having seen all of its history."""
        check_shapes(items, valid, len(self.positions))
        length = items.shape[1]
        states = self.drop(items + self.positions[:length].flip(0))
        # A padded position sees itself, so that no row of the softmax is empty (NaN).
        itself = torch.eye(length, dtype=torch.bool, device=items.device)
        visible = (valid[:, None, :] | itself)[:, None]  # (B, 1, L, L)
        for layer in self.layers:
            states = layer(states, visible)
        normed: Tensor = self.norm(states)
        return normed

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """The state at a mask after the latest item (B, D); see models.sequence.SequenceModel.

        Raises:
            ValueError: the shapes disagree, or the history is longer than max_history.
        """
        check_shapes(items, valid, len(self.positions) - 1)
        mask = self.mask.expand(len(items), 1, -1)
        told = torch.cat([valid, valid.new_ones(len(valid), 1)], dim=1)
        return self._states(torch.cat([items, mask], dim=1), told)[:, -1]

    def predictions(self, items: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """States at masked items, to find those; see models.sequence.SequenceModel."""
        last = torch.zeros_like(valid)
        last[:, -1] = True
        drawn = torch.rand(valid.shape, device=valid.device) < self.masked
        # A history in which nothing, or everything, was drawn has its latest item masked.
        some = (drawn & valid).any(dim=1) & (~drawn & valid).any(dim=1)
        cloze = some & (torch.rand(len(valid), device=valid.device) < 0.5)
        hidden = torch.where(cloze[:, None], drawn, last) & valid
        shown = torch.where(hidden.unsqueeze(-1), self.mask, items)
        return self._states(shown, valid)[hidden], hidden.flatten().nonzero()[:, 0]
