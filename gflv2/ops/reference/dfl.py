"""Distribution Focal Loss (arXiv 2006.04388, equation 6)."""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.reduction import reduce_loss


def dfl_rows(logits: Tensor, target: Tensor) -> Tensor:
    """(…, R) logits and (…) targets in bins → (…) losses."""
    log_p = logits.to(compute_dtype(logits.dtype)).log_softmax(-1)
    bins = log_p.shape[-1]
    # A target outside [0, R − 1] is clamped, so that no wrong label reads outside the row.
    target = target.detach().to(log_p.dtype).clamp(0, bins - 1)
    left = target.floor().long().clamp(0, bins - 2)
    below = log_p.gather(-1, left[..., None]).squeeze(-1)
    above = log_p.gather(-1, left[..., None] + 1).squeeze(-1)
    return -(below * (left + 1 - target) + above * (target - left))


def dfl(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """CE(z, yl)·(yl + 1 − d) + CE(z, yl + 1)·(d − yl) with yl = ⌊d⌋: the two bins beside the target share it.

    Args and result: as `gflv2.ops.dfl`.
    """
    return reduce_loss(dfl_rows(logits, target), weight, avg_factor, reduction)
