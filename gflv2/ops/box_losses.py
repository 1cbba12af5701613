"""What the box losses of ``gfl_loss`` keep for their backward pass, which writes the gradient of the box logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SavedBoxLoss(NamedTuple):
    """∂(box losses)/∂(scaled logits) of a row is P·(u·(projection − d) + v) − v·hat.

    With u = f_giou·(first of ``sides``), v = f_dfl·w, and ``hat`` the two bins beside the second of ``sides``. f_giou
    and f_dfl are the upstream gradients times ``factors``, divided by W. All tensors are contiguous, in the dtype of
    the arithmetic.

    Attributes:
        sides: (B, A, 4, 2): w·∂(1 − GIoU)/∂d in strides, and the target of DFL in bins.
        weights: (B, A) w; points with a weight of 0 do not count.
        projection: (R,).
        normalisers: (2,), N_pos and W.
        grad_giou, grad_dfl: () upstream gradients.
        factors: of the GIoU loss and of DFL.
    """

    sides: Tensor
    weights: Tensor
    projection: Tensor
    normalisers: Tensor
    grad_giou: Tensor
    grad_dfl: Tensor
    factors: tuple[float, float]
