"""``dfl``: Distribution Focal Loss (arXiv 2006.04388, equation 6)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_value, check_tensor, values_are_checked
from gflv2.ops.levels import BINS_LIMITS
from gflv2.ops.reduction import check_reduction
from gflv2.ops.reference import dfl as reference


def dfl(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The two bins beside a continuous target share it: CE(z, ⌊d⌋)·(⌊d⌋ + 1 − d) + CE(z, ⌊d⌋ + 1)·(d − ⌊d⌋).

    Args:
        logits: (N, R), one row a box side. float32, float16, bfloat16 or float64.
        target: (N,) distances d in bins, 0 ≤ d ≤ R − 1; others are clamped (an error under ``GFLV2_CHECK=1``).
        weight: (N,) factor of each row.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean".

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 logits); 0 for no rows. Differentiable in ``logits``
        only.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(logits)
    check_tensor(target, "target", shape=(logits.shape[0],), device=logits.device)
    check_reduction(weight, avg_factor, reduction, count=logits.shape[0], device=logits.device)
    if values_are_checked() and bool(((target < 0) | (target > logits.shape[1] - 1)).any()):
        bad_value("target", f"distances in [0, {logits.shape[1] - 1}] bins", [float(target.min()), float(target.max())])
    backends.select("dfl", call)
    return reference.dfl(logits, target, weight=weight, avg_factor=avg_factor, reduction=reduction)


def _describe(logits: Any, *_: Any, **__: Any) -> backends.Call:
    check_tensor(logits, "logits", shape=(None, None))
    low, high = BINS_LIMITS
    if not low <= logits.shape[1] <= high:
        bad_value("logits", f"{low} to {high} bins a row", logits)
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


backends.register("dfl", {"reference": None}, _describe)
