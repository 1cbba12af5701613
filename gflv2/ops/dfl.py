"""``dfl``: Distribution Focal Loss (arXiv 2006.04388, equation 6)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_value, check_tensor, values_are_checked
from gflv2.ops.levels import check_bins
from gflv2.ops.reduction import Loss, read_reduction
from gflv2.ops.reference import dfl as reference
from gflv2.ops.registration import constant, like_map


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
        logits: (N, R), one row a box side, any strides. float32, float16, bfloat16 or float64.
        target: (N,) distances d in bins, 0 ≤ d ≤ R − 1; others are clamped (an error under ``GFLV2_CHECK=1``).
        weight: (N,) factor of each row.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean".

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 logits); 0 for no rows, whatever the average factor.
        Differentiable in ``logits`` only, once.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(logits)
    rows = logits.shape[:1]
    check_tensor(target, "target", shape=rows, device=call.device)
    how = read_reduction(weight, avg_factor, reduction, shape=rows, device=call.device)
    if values_are_checked() and bool(((target < 0) | (target > logits.shape[1] - 1)).any()):
        bad_value("target", f"distances in [0, {logits.shape[1] - 1}] bins", [float(target.min()), float(target.max())])
    backend = backends.select("dfl", call)
    if backend == "reference":
        return reference.dfl(logits, target, weight=weight, avg_factor=avg_factor, reduction=reduction)
    return _dfl.of((logits, constant(target)), (), how, backend)


def _describe(logits: Any, *_: Any, **__: Any) -> backends.Call:
    check_bins(logits)
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


_dfl = Loss(
    "dfl",
    describe=_describe,
    tensors="Tensor logits, Tensor target",
    small=("target",),
    gradients={"logits": like_map},
)
