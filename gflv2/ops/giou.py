"""``giou``: Generalised IoU loss of aligned boxes (arXiv 1902.09630), and ``iou``, the quality that QFL learns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_value, check_tensor
from gflv2.ops.reduction import check_reduction
from gflv2.ops.reference import giou as reference


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
        pred: (N, 4) boxes (x1, y1, x2, y2), any unit. float32, float16, bfloat16 or float64.
        target: (N, 4) boxes in the same unit.
        weight: (N,) factor of each pair.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean".
        eps: smallest area, in the square of the unit.

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 boxes), each in [0, 2]; 0 for no pairs. Differentiable
        in ``pred`` only; where two sides coincide the gradient is halved, at an intersection of width 0 it is 0.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(pred, target, eps=eps)
    check_reduction(weight, avg_factor, reduction, count=pred.shape[0], device=pred.device)
    backends.select("giou", call)
    return reference.giou(pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction, eps=eps)


def iou(pred: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """IoU of aligned pairs, I / max(U, eps), in [0, 1].

    Args:
        pred, target, eps: as `giou`.

    Returns:
        (N,), float32 (float64 for float64 boxes). Differentiable in both boxes.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    backends.select("iou", _describe(pred, target, eps=eps))
    return reference.iou(pred, target, eps=eps)


def _describe(pred: Any, target: Any, *_: Any, eps: float = 1e-6, **__: Any) -> backends.Call:
    check_tensor(pred, "pred", shape=(None, 4))
    check_tensor(target, "target", shape=(pred.shape[0], 4), device=pred.device)
    if not eps > 0:
        bad_value("eps", "a positive number", eps)
    return backends.Call(pred.device, pred.dtype, {})


backends.register("giou", {"reference": None}, _describe)
backends.register("iou", {"reference": None}, _describe)
