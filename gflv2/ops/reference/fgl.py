"""Fine-grained localisation loss of D-FINE (arXiv 2410.13842, equation 6): DFL on bins that are not uniform."""

from __future__ import annotations

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.reduction import reduce_loss


def fgl_rows(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """(N, R) logits, (N,) targets in the unit of the values (R,) of the bins → (N,) losses."""
    log_p = logits.to(compute_dtype(logits.dtype)).log_softmax(-1)
    bins, target = bins.detach().to(log_p.dtype), target.detach().to(log_p.dtype)
    # The last bin that is not beyond the target; the first or the last pair of bins for a target outside.
    left = ((bins <= target[:, None]).sum(-1) - 1).clamp(0, len(bins) - 2)
    low, high = bins[left], bins[left + 1]
    share = ((target - low) / (high - low)).clamp(0, 1)
    below, above = (log_p.gather(-1, (left + step)[:, None]).squeeze(-1) for step in (0, 1))
    return -(below * (1 - share) + above * share)


def bin_positions(distances: Tensor, bins: Tensor) -> Tensor:
    """Where distances lie among the bins.

    Args and result: as `gflv2.ops.bin_positions`.
    """
    bins, distances = bins.detach().contiguous(), distances.detach().to(bins.dtype).contiguous()
    left = (torch.searchsorted(bins, distances, right=True) - 1).clamp(0, len(bins) - 2)
    low, high = bins[left], bins[left + 1]
    return left + ((distances - low) / (high - low)).clamp(0, 1)


def fgl(
    logits: Tensor,
    target: Tensor,
    bins: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """CE(z, n)·(1 − s) + CE(z, n + 1)·s with W(n) ≤ d ≤ W(n + 1) and s = (d − W(n)) / (W(n + 1) − W(n)).

    Args and result: as `gflv2.ops.fgl`.
    """
    return reduce_loss(fgl_rows(logits, target, bins), weight, avg_factor, reduction)
