"""SASRec on item vectors.

Shapes: B histories, L items, D = dim, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Layer(nn.Module):
    """Pre-norm self-attention and feed-forward, each added to its input."""

    def __init__(self, dim: int, heads: int, feed: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed = nn.Sequential(
            nn.Linear(dim, feed * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(feed * dim, dim)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, items: Tensor, visible: Tensor) -> Tensor:
        batch, length, dim = items.shape
        qkv = self.qkv(self.attention_norm(items))
        query, key, value = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(  # (B, H, L, D / H)
            query, key, value, attn_mask=visible
        )
        items = items + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)))
        fed: Tensor = items + self.drop(self.feed(self.feed_norm(items)))
        return fed


class SASRec(nn.Module):
    """Self-attention over a history of item vectors.

    Source: Kang and McAuley 2018, arXiv:1808.09781. Departs from it: vectors come in, not ids;
    layers are pre-norm with GELU; a position counts from the latest item backwards, so that
    padding moves nothing; attention weights are not dropped out, as drawing L x L masks is slow
    on a CPU.

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
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by {heads} heads")
        self.positions = nn.Parameter(torch.randn(max_history, dim) * 0.02)  # [0]: latest item
        self.layers = nn.ModuleList(_Layer(dim, heads, feed, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, items: Tensor, valid: Tensor) -> Tensor:
        """State after every step of every history; see models.sequence.SequenceModel.

        Raises:
            ValueError: the shapes disagree, or the history is longer than max_history.
        """
        batch, length, _ = items.shape
        if valid.shape != (batch, length):
            raise ValueError(f"items {tuple(items.shape)} do not match valid {tuple(valid.shape)}")
        if length > len(self.positions):
            raise ValueError(f"a history of {length} items exceeds {len(self.positions)}")
        states = self.drop(items + self.positions[:length].flip(0))
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        # A padded position sees itself, so that no row of the softmax is empty (NaN).
        itself = torch.eye(length, dtype=torch.bool, device=items.device)
        visible = ((causal & valid[:, None, :]) | itself)[:, None]  # (B, 1, L, L)
        for layer in self.layers:
            states = layer(states, visible)
        normed: Tensor = self.norm(states)
        return normed
