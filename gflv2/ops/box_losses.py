"""What the box losses of ``gfl_loss`` leave for the gradient of the box logits, which ``dgqp`` writes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SavedBoxLoss(NamedTuple):
    """∂(box losses)/∂(scaled logits) of a row is P·(u·(projection − d) + v) − v·hat, u = f_giou·sides[0], v = f_dfl·w.

    Attributes:
        sides: (B, A, 4, 2): w·∂(1 − GIoU)/∂d in strides, and the target of DFL in bins.
        weights: (B, A) w; points with a weight of 0 do not count.
        projection: (R,).
        grad_losses: (2,) upstream gradients of GIoU loss and DFL.
        normaliser: () W.
        factors: f_giou and f_dfl are the upstream gradients times these, divided by the normaliser.
    All contiguous, in the dtype of the arithmetic.
    """

    sides: Tensor
    weights: Tensor
    projection: Tensor
    grad_losses: Tensor
    normaliser: Tensor
    factors: tuple[float, float]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self[:5]
