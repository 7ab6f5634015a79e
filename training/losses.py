"""What SCFT and RAT minimise.

Shapes: B items of one batch, P positions, N negatives, D dimensions.
"""

import torch
from torch import Tensor
from torch.nn import functional


def sampled_softmax(
    states: Tensor, positives: Tensor, negatives: Tensor, collides: Tensor
) -> Tensor:
    """Mean cross-entropy of each state's next item among it and N shared negatives.

    Uniform negatives shared by the batch (eSASRec, RecSys 2025) in place of SASRec's binary
    cross-entropy with one negative, whose overconfidence costs a third of the recall.

    Args:
        states: (P, D), already scaled: logits are plain dot products.
        positives: (P, D) item vectors of the next items.
        negatives: (N, D) item vectors.
        collides: (P, N) bool, True where a negative is that position's own next item; it is
            left out.
    """
    positive = (states * positives).sum(dim=-1, keepdim=True)  # (P, 1)
    negative = (states @ negatives.T).masked_fill(collides, -torch.inf)  # (P, N)
    logits = torch.cat([positive, negative], dim=1)
    return -functional.log_softmax(logits, dim=1)[:, 0].mean()


def infonce(left: Tensor, right: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of cosines: left[i] belongs to right[i] and to no other (NT-Xent,
    multiple negatives ranking, in-batch negatives).

    Args:
        left: (B, D); right: (B, D).
        temperature: divides the cosines.
        same: (B, B) bool, True where i and j are the same thing though i != j - two items of
            identical text; such pairs are no negatives.
    """
    logits = functional.normalize(left, dim=-1) @ functional.normalize(right, dim=-1).T
    logits = logits / temperature
    if same is not None:
        others = same & ~torch.eye(len(left), dtype=torch.bool, device=left.device)
        logits = logits.masked_fill(others, -torch.inf)
    target = torch.arange(len(left), device=left.device)
    both = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    return both / 2


def soft_target(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """LLMEmb's contrastive loss: the target of a pair is how alike the two sides are already.

    Source: the loss of LLMEmb's published code (arXiv 2409.19925), logits `L R' / t` against
    targets `softmax(t (L L' + R R') / 2)`. Departs from it: vectors are normalised, so fp16 and
    bf16 cannot overflow; targets carry no gradient; those of the transposed direction are a
    distribution of their own instead of a transposed one, whose rows do not sum to 1.

    Args:
        left: (B, D); right: (B, D).
        temperature: divides the logits; the targets are as sharp as the logits.
    """
    left, right = functional.normalize(left, dim=-1), functional.normalize(right, dim=-1)
    logits = left @ right.T / temperature
    with torch.no_grad():
        alike = (left @ left.T + right @ right.T) / 2 / temperature  # symmetric
        targets = alike.softmax(dim=-1)
    both = functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)
    return both / 2
