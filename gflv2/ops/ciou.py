"""``ciou``: Complete IoU loss of aligned boxes (arXiv 2005.03572), as Ultralytics or as mmdet computes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import check_choice
from gflv2.ops.giou import CIOU, CIOU_MMDET, OPERATION, describe
from gflv2.ops.reduction import read_reduction
from gflv2.ops.reference import ciou as reference

CONVENTIONS = {"ultralytics": CIOU, "mmdet": CIOU_MMDET}


def ciou(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    eps: float = 1e-7,
    convention: str = "ultralytics",
) -> Tensor:
    """1 − CIoU, CIoU = I/U − ρ²/c² − α·v with v = 4/π²·(atan(w′/h′) − atan(w/h))² and α = v / (1 − I/U + v).

    ρ is the distance of the centres, c the diagonal of the enclosing box; w, h and w′, h′ are the sides of ``pred`` and
    ``target``. α is a constant: no gradient goes through it. The CIoU itself is 1 − the loss.

    Where ``eps`` stands is a convention:

    * "ultralytics": U = w·(h + ε) + w′·(h′ + ε) − I + ε, c² + ε, h + ε, h′ + ε, and α = v / (1 − I/U + v + ε);
    * "mmdet": U = w·h + w′·h′ − I + ε, c² + ε, h + ε, h′ + ε in v, α = 0 where I/U ≤ 1/2 or v = 0, and CIoU is at least
      −1, which counts only for boxes with x2 < x1 or y2 < y1.

    Args:
        pred: (N, 4) boxes (x1, y1, x2, y2), any unit, any strides. float32, float16, bfloat16 or float64. Coordinates
            to ±1e18: of larger ones areas leave the range of float32, and nothing is said of the numbers.
        target: (N, 4) boxes in the same unit.
        weight: (N,) factor of each pair.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean".
        eps: ε, 1e-7 in Ultralytics and in mmdet's function, 1e-6 in mmdet's ``CIoULoss``.
        convention: "ultralytics" or "mmdet".

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 boxes), each in [0, 2.5]; 0 for no pairs, whatever the
        average factor. Differentiable in both boxes, once. Where two sides coincide they share the gradient; at an
        intersection of width 0 it is that of the other terms.

    Raises:
        TypeError, ValueError: a wrong shape, dtype, device or convention; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(pred, target, eps=eps, convention=convention)
    how = read_reduction(weight, avg_factor, reduction, shape=pred.shape[:1], device=pred.device)
    backend = backends.select("ciou", call)
    if backend == "reference":
        options = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
        return reference.ciou(pred, target, eps=eps, convention=convention, **options)
    return OPERATION.of((pred, target), (CONVENTIONS[convention], float(eps)), how, backend)


def _describe(
    pred: Any, target: Any, *_: Any, eps: float = 1e-7, convention: str = "ultralytics", **__: Any
) -> backends.Call:
    check_choice(convention, "convention", tuple(CONVENTIONS))
    return describe(pred, target, eps=eps)


backends.register("ciou", backends.EVERYWHERE, _describe)  # it runs the operation of `giou`
