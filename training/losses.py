"""What SCFT and RAT minimise.

Shapes: B items of one batch, P positions, N negatives, D dimensions.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

NextItemLoss = Literal["sampled_softmax", "softmax", "gbce", "bce"]
ContrastiveLoss = Literal["infonce", "soft_target"]
SHARPER = 9  # t * t of SCFT's published soft targets, whose t starts at 3; the alignment's has 2


def next_item_loss(
    loss: NextItemLoss,
    states: Tensor,
    positives: Tensor,
    negatives: Tensor,
    collides: Tensor,
    items: int,
) -> Tensor:
    """The mean loss of finding each state's next item among it and negatives.

    - `sampled_softmax`: cross-entropy among the next item and N negatives that the batch shares
      (eSASRec, RecSys 2025). The default.
    - `softmax`: the same over all training items, which the caller passes as negatives.
    - `gbce`: binary cross-entropy that does not grow overconfident with few negatives.
    - `bce`: binary cross-entropy with one negative a state, drawn from the shared ones, as SASRec
      and LLMEmb train.

    Args:
        states: (P, D), already scaled: logits are plain dot products.
        positives: (P, D) item vectors of the next items.
        negatives: (N, D) item vectors.
        collides: (P, N) bool, True where a negative is that position's own next item; it is
            left out.
        items: training items, from which negatives were drawn.
    """
    positive = (states * positives).sum(dim=-1, keepdim=True)  # (P, 1)
    negative = (states @ negatives.T).masked_fill(collides, -torch.inf)  # (P, N)
    if loss in {"sampled_softmax", "softmax"}:
        logits = torch.cat([positive, negative], dim=1)
        return -functional.log_softmax(logits, dim=1)[:, 0].mean()
    if loss == "gbce":
        return gbce(positive, negative, items)
    one = torch.randint(len(negatives), positive.shape, device=negative.device)
    return gbce(positive, negative.gather(1, one), items, calibration=0.0)


def gbce(positive: Tensor, negative: Tensor, items: int, calibration: float = 0.75) -> Tensor:
    """Generalised binary cross-entropy: the positive's probability is raised to a power b <= 1.

    Source: gSASRec (Petrov and Macdonald, RecSys 2023, arXiv 2308.07192), section 5. With the
    sampling rate a = N / (items - 1) and calibration t, b = a (t (1 - 1 / a) + 1 / a). t = 0
    gives b = 1, plain binary cross-entropy; t = 1 undoes what sampling does to probabilities.

    Args:
        positive: (P, 1) logits of the next items.
        negative: (P, N) logits; those that are -inf are left out.
        items: that negatives were drawn from; with no more of them than negatives b is 1.
    """
    rate = min(1.0, negative.shape[1] / max(items - 1, 1))
    power = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    right = power * functional.logsigmoid(positive).sum(dim=1)
    wrong = functional.logsigmoid(-negative).masked_fill(torch.isinf(negative), 0.0).sum(dim=1)
    return -((right + wrong) / (1 + negative.shape[1])).mean()


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


def contrastive(
    loss: ContrastiveLoss,
    left: Tensor,
    right: Tensor,
    temperature: float,
    same: Tensor | None = None,
) -> Tensor:
    """The loss of this name; see infonce and soft_target, whose targets need no `same`."""
    if loss == "infonce":
        return infonce(left, right, temperature, same)
    return soft_target(left, right, temperature)


def soft_target(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """LLMEmb's contrastive loss: the target of a pair is how alike the two sides are already.

    Source: the loss of LLMEmb's published code (arXiv 2409.19925), logits `L R' / t` against
    targets `softmax(t (L L' + R R') / 2)`, which are SHARPER than the logits by t * t. Without
    that, vectors that are near each other, as an LLM's are, have targets that tell nothing apart,
    and the loss takes them together until all are one. Departs from it: vectors are normalised, so
    fp16 and bf16 cannot overflow; targets carry no gradient; those of the transposed direction are
    a distribution of their own instead of a transposed one, whose rows do not sum to 1.

    Args:
        left: (B, D); right: (B, D).
        temperature: divides the logits.
    """
    left, right = functional.normalize(left, dim=-1), functional.normalize(right, dim=-1)
    logits = left @ right.T / temperature
    with torch.no_grad():
        alike = (left @ left.T + right @ right.T) / 2  # symmetric
        targets = (SHARPER * alike / temperature).softmax(dim=-1)
    both = functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)
    return both / 2
