"""The native ``giou`` and ``iou``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the boxes are float64. A `Reduction` comes from
``Reduction.on``; results are (N,) or () tensors in S, contiguous, and so are their gradients.
"""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.native.loading import library
from gflv2.ops.native.reduction import describe_reduction, row_workspace
from gflv2.ops.native.tensors import DTYPES, place, pointer
from gflv2.ops.reduction import Reduction


def giou_forward(pred: Tensor, target: Tensor, loss: bool, eps: float, reduction: Reduction, out: Tensor) -> None:
    """1 − GIoU (``loss``) or IoU of the pairs, or their total, written to ``out``.

    Args:
        pred: (N, 4), any strides.
        target: (N, 4) S, contiguous.
    """
    _giou(False, pred, target, loss, eps, reduction, out, None, None, None)


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
    _giou(True, pred, target, loss, eps, reduction, out, grad, grad_pred, grad_target)


def _giou(
    backward: bool,
    pred: Tensor,
    target: Tensor,
    loss: bool,
    eps: float,
    reduction: Reduction,
    out: Tensor | None,
    grad: Tensor | None,
    grad_pred: Tensor | None,
    grad_target: Tensor | None,
) -> None:
    module = library()
    device, where = place(pred)
    workspace = row_workspace(module, "giou", device, backward, reduction, pred)
    module.giou(
        backward,
        device,
        where,
        DTYPES[pred.dtype],
        loss,
        pred.shape[0],
        pred.data_ptr(),
        *pred.stride(),
        target.data_ptr(),
        eps,
        describe_reduction(module, reduction, out, grad),
        pointer(grad_pred),
        pointer(grad_target),
        pointer(workspace),
    )
