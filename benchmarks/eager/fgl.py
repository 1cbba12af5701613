"""``fgl``: (N, R) logits, (N,) targets and (R,) values of the bins → Σ weight · loss / avg_factor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def all_differences(logits: Tensor, target: Tensor, bins: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
    """As D-FINE's authors have it: every target is compared with every bin, and there are two cross-entropies."""
    left = ((bins - target[:, None]) <= 0).sum(1) - 1
    outside = (left < 0) | (left >= len(bins) - 1)
    left = left.clamp(0, len(bins) - 2)
    below, above = (target - bins[left]).abs(), (bins[left + 1] - target).abs()
    share = torch.where(outside, (target > bins[0]).to(below), below / (below + above))
    losses = F.cross_entropy(logits.float(), left, reduction="none") * (1 - share)
    losses = losses + F.cross_entropy(logits.float(), left + 1, reduction="none") * share
    return (losses * weight).sum() / avg_factor


def one_logarithm(logits: Tensor, target: Tensor, bins: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
    """A search for the bin, and one softmax instead of two."""
    logits = logits.float()
    left = (torch.searchsorted(bins, target, right=True) - 1).clamp_(0, len(bins) - 2)
    low = bins[left]
    share = ((target - low) / (bins[left + 1] - low)).clamp(0, 1)
    beside = logits.gather(1, torch.stack([left, left + 1], dim=1))
    return ((logits.logsumexp(1) - torch.lerp(beside[:, 0], beside[:, 1], share)) * weight).sum() / avg_factor


FORMS = {"all_differences": all_differences, "one_logarithm": one_logarithm}
