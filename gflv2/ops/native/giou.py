"""The native ``giou`` and ``iou``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the boxes are float64. A `Reduction` comes from
``Reduction.over``; results are (N,) or () tensors in S, contiguous, and so are their gradients.
"""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.native.tensors import native
from gflv2.ops.reduction import Reduction


@native
def giou_forward(pred: Tensor, target: Tensor, loss: bool, eps: float, reduction: Reduction, out: Tensor) -> None:
    """1 − GIoU (``loss``) or IoU of the pairs, or their total, written to ``out``.

    Args:
        pred: (N, 4), any strides.
        target: (N, 4) S, contiguous.
    """


@native
def giou_backward(
    grad: Tensor | None,
    pred: Tensor,
    target: Tensor,
    loss: bool,
    eps: float,
    reduction: Reduction,
    grad_pred: Tensor | None,
    grad_target: Tensor | None,
    out: Tensor | None = None,
) -> None:
    """Gradients, written to ``grad_pred`` (in pred's dtype) and ``grad_target`` (S): (N, 4), contiguous, or None.
    On a CPU ``grad`` may be None, which means 1, and the result is written too where ``out`` is given."""
