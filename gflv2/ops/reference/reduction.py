"""Weights, reductions and average factors of the losses, with mmdet's meaning."""

from __future__ import annotations

import torch
from torch import Tensor


def reduce_loss(loss: Tensor, weight: Tensor | None, avg_factor: float | Tensor | None, reduction: str) -> Tensor:
    """Per-row losses (N,) → (N,) for "none", else a 0-d tensor.

    Weight and average factor are constants: no gradient goes to them. "sum" adds; "mean" divides the sum by
    ``avg_factor``, or by N without one. A loss of no rows is 0, whatever the average factor: 0, infinite or no number.
    "none" leaves the average factor out.
    """
    if weight is not None:
        loss = loss * weight.detach().to(loss.dtype)
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if avg_factor is None:
        return total / max(loss.numel(), 1)
    if not isinstance(avg_factor, Tensor):
        return total / avg_factor
    avg_factor = avg_factor.detach().to(total.dtype)
    # Not a branch: in a compiled graph the number of rows may depend on data.
    rows = torch.ones_like(loss, dtype=torch.bool).any()
    return total / torch.where(rows, avg_factor, 1)
