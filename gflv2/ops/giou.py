"""``giou``: Generalised IoU loss of aligned boxes (arXiv 1902.09630), and ``iou``, the quality that QFL learns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import check_number, check_tensor
from gflv2.ops.reduction import UNREDUCED, Loss, read_reduction
from gflv2.ops.reference import giou as reference
from gflv2.ops.registration import as_rows

# What the registered operation computes of a pair: the IoU, or 1 − GIoU, or 1 − CIoU by one of its two conventions.
IOU, GIOU, CIOU, CIOU_MMDET = range(4)


def giou(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    eps: float = 1e-6,
) -> Tensor:
    """1 − GIoU, GIoU = I/U − (E − U)/E, with intersection I, union U = max(U, eps) and enclosing box E = max(E, eps).

    Args:
        pred: (N, 4) boxes (x1, y1, x2, y2), any unit, any strides. float32, float16, bfloat16 or float64. Coordinates
            to ±1e18: of larger ones areas leave the range of float32, and nothing is said of the numbers.
        target: (N, 4) boxes in the same unit.
        weight: (N,) factor of each pair.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean".
        eps: smallest area, in the square of the unit.

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 boxes), each in [0, 2]; 0 for no pairs, whatever the
        average factor. Differentiable in both boxes, once. Where two sides coincide they share the gradient; at an
        intersection of width 0 it is 0.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = describe(pred, target, eps=eps)
    how = read_reduction(weight, avg_factor, reduction, shape=pred.shape[:1], device=pred.device)
    backend = backends.select("giou", call)
    if backend == "reference":
        return reference.giou(pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction, eps=eps)
    return OPERATION.of((pred, target), (GIOU, float(eps)), how, backend)


def iou(pred: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """IoU of aligned pairs, I / max(U, eps), in [0, 1].

    Args:
        pred, target, eps: as `giou`.

    Returns:
        (N,), float32 (float64 for float64 boxes). Differentiable in both boxes, once.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    backend = backends.select("iou", describe(pred, target, eps=eps))
    if backend == "reference":
        return reference.iou(pred, target, eps=eps)
    return OPERATION.of((pred, target), (IOU, float(eps)), UNREDUCED, backend)


def describe(pred: Any, target: Any, *_: Any, eps: float = 1e-6, **__: Any) -> backends.Call:
    """Check the boxes of `giou`, `iou` or `ciou`, and say what decides on the backend."""
    check_tensor(pred, "pred", shape=(None, 4))
    check_tensor(target, "target", shape=(pred.shape[0], 4), device=pred.device)
    check_number(eps, "eps", above=0)
    return backends.Call(pred.device, pred.dtype, {})


backends.register("iou", backends.EVERYWHERE, describe)  # it runs the operation of `giou`


OPERATION = Loss(
    "giou",
    describe=describe,
    tensors="Tensor pred, Tensor target",
    settings="int form, float eps",
    small=("target",),
    gradients={"pred": as_rows, "target": as_rows},
    called={IOU: "iou", CIOU: "ciou", CIOU_MMDET: "ciou"},
)
