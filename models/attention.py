"""What the sequence models share: dropout, the layer of SASRec and BERT4Rec, small functions.

Shapes: B histories, L items, D = dim, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Module):
    """nn.Dropout with masks of random bytes: `probability` in steps of 1/256.

    On a CPU nn.Dropout draws 64 random bits for every number, which took a fifth of a training
    step; here they make eight.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 0.99:
            raise ValueError(f"dropout {probability} must be from 0 to 0.99")
        self.dropped = round(probability * 256)  # of 256 values that a byte has

    def forward(self, values: Tensor) -> Tensor:
        """In training, some values at 0 and the others scaled up; else all as they are."""
        if not (self.training and self.dropped):
            return values
        words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64, device=values.device)
        random = words.random_(torch.iinfo(torch.int64).min, None).view(torch.uint8)
        kept = random[: values.numel()].view(values.shape) >= self.dropped
        return values * (kept * (256 / (256 - self.dropped)))


class AttentionLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, each added to its input.

    Attention weights are not dropped out: drawing L x L masks is slow on a CPU.

    Args:
        dim: width of the items (D).
        heads: attention heads (H).
        feed: width of the feed-forward, in multiples of dim.
        dropout: in the feed-forward, and on what each half adds.

    Raises:
        ValueError: heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int, feed: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed = nn.Sequential(
            nn.Linear(dim, feed * dim), nn.GELU(), Dropout(dropout), nn.Linear(feed * dim, dim)
        )
        self.drop = Dropout(dropout)

    def forward(self, items: Tensor, visible: Tensor, latest_alone: bool = False) -> Tensor:
        """Items (B, L, D), each having read those that are visible to it (B or 1, 1, L, L).

        Args:
            latest_alone: whether only what the latest one becomes is wanted, (B, 1, D), which is
                a fraction of the work.
        """
        batch, _, dim = items.shape
        normed = self.attention_norm(items)
        if latest_alone:
            items, visible = items[:, -1:], visible[..., -1:, :]
            query = functional.linear(normed[:, -1:], self.qkv.weight[:dim], self.qkv.bias[:dim])
            rest = functional.linear(normed, self.qkv.weight[dim:], self.qkv.bias[dim:])
            key, value = rest.chunk(2, dim=-1)
        else:
            query, key, value = self.qkv(normed).chunk(3, dim=-1)
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value)
        )
        mixed = functional.scaled_dot_product_attention(  # (B, H, L, D / H)
            query, key, value, attn_mask=visible
        )
        mixed = mixed.transpose(1, 2).reshape(batch, -1, dim)
        items = items + self.drop(self.out(mixed))
        fed: Tensor = items + self.drop(self.feed(self.feed_norm(items)))
        return fed


def check_shapes(items: Tensor, valid: Tensor, longest: int) -> None:
    """Raise ValueError unless valid is (B, L) for items (B, L, D), and L is at most longest."""
    if valid.shape != items.shape[:2]:
        raise ValueError(f"items {tuple(items.shape)} do not match valid {tuple(valid.shape)}")
    if items.shape[1] > longest:
        raise ValueError(f"a history of {items.shape[1]} items exceeds {longest}")


def next_places(valid: Tensor) -> Tensor:
    """Where the item after each valid one stands in the flattened histories (B, L): (P,)."""
    places = torch.arange(valid.numel(), device=valid.device).view(valid.shape)
    return places[:, 1:][valid[:, :-1]]
