"""``dfl``: Distribution Focal Loss (arXiv 2006.04388, equation 6)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_value, check_tensor, values_are_checked
from gflv2.ops.levels import check_bins
from gflv2.ops.reduction import SETTINGS, TENSORS, Reduction, check_reduction, resolve
from gflv2.ops.reference import dfl as reference
from gflv2.ops.registration import Operation, like_map, with_result


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
    check_tensor(target, "target", shape=(logits.shape[0],), device=logits.device)
    check_reduction(weight, avg_factor, reduction, shape=logits.shape[:1], device=logits.device)
    if values_are_checked() and bool(((target < 0) | (target > logits.shape[1] - 1)).any()):
        bad_value("target", f"distances in [0, {logits.shape[1] - 1}] bins", [float(target.min()), float(target.max())])
    backend = backends.select("dfl", call)
    if backend == "reference":
        return reference.dfl(logits, target, weight=weight, avg_factor=avg_factor, reduction=reduction)
    weight, factor, *how = resolve(weight, avg_factor, reduction)
    return _dfl((logits, target.detach(), weight, factor), (*how, backend))


def _describe(logits: Any, *_: Any, **__: Any) -> backends.Call:
    check_bins(logits)
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


def _new_results(logits, target, *how: Any) -> Tensor:
    return Reduction(*how).new_result(logits.shape[:1], logits)


def _forward(kernels, out, logits, target, *how: Any) -> None:
    kernels.dfl_forward(logits, target, Reduction(*how).over(logits.shape[:1]), out)


def _backward(kernels, grad, gradients, out, logits, target, *how: Any) -> None:
    kernels.dfl_backward(grad, logits, target, Reduction(*how).over(logits.shape[:1]), *gradients, *with_result(out))


_dfl = Operation(
    "dfl",
    describe=_describe,
    tensors=f"Tensor logits, Tensor target, {TENSORS}",
    settings=SETTINGS,
    new_results=_new_results,
    forward=_forward,
    small=("target", "weight", "factor"),
    gradients={"logits": like_map},
    backward=_backward,
    together=True,
)
