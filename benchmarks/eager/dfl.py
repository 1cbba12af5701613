"""``dfl``: (N, R) logits and (N,) targets in bins → Σ weight · loss / avg_factor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def two_cross_entropies(logits: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
    """As the authors and everybody after them have it."""
    left = target.long()
    above = target - left
    below_loss = F.cross_entropy(logits.float(), left, reduction="none") * (1 - above)
    above_loss = F.cross_entropy(logits.float(), left + 1, reduction="none") * above
    return ((below_loss + above_loss) * weight).sum() / avg_factor


def one_logarithm(logits: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
    """log Σ exp z − the two logits beside the target, in their shares: one softmax instead of two."""
    logits = logits.float()
    left = target.long()
    beside = logits.gather(1, torch.stack([left, left + 1], dim=1))
    mixed = torch.lerp(beside[:, 0], beside[:, 1], target - left)
    return ((logits.logsumexp(1) - mixed) * weight).sum() / avg_factor


FORMS = {"two_cross_entropies": two_cross_entropies, "one_logarithm": one_logarithm}
