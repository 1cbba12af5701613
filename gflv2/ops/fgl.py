"""``fgl``: fine-grained localisation loss (D-FINE, arXiv 2410.13842), and ``bin_positions``, which makes it a `dfl`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_value, check_tensor, compute_dtype, values_are_checked
from gflv2.ops.dfl import dfl
from gflv2.ops.levels import check_bins
from gflv2.ops.reduction import read_reduction
from gflv2.ops.reference import fgl as reference


def fgl(
    logits: Tensor,
    target: Tensor,
    bins: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The two bins W(n) ≤ d ≤ W(n + 1) beside a target share it: CE(z, n)·(1 − s) + CE(z, n + 1)·s.

    s = (d − W(n)) / (W(n + 1) − W(n)). It is `dfl` at the position n + s among the bins (`bin_positions`), on the
    kernels of `dfl`. In D-FINE the weight of a row is the IoU of its box, and the average factor the number of boxes.

    Args:
        logits: (N, R), one row a box side, any strides. float32, float16, bfloat16 or float64.
        target: (N,) distances in the unit of ``bins``; beyond the first or the last bin, that bin has it all.
        bins: (R,) values W of the bins, increasing (an error under ``GFLV2_CHECK=1`` where they are not); results are
            undefined otherwise.
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
    call = _describe(logits, target, bins)
    dtype = compute_dtype(logits.dtype)
    if backends.select("fgl", call) == "reference":
        read_reduction(weight, avg_factor, reduction, shape=logits.shape[:1], device=call.device)
        options = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
        return reference.fgl(logits, target, bins, **options)
    positions = reference.bin_positions(target.to(dtype), bins.to(dtype))
    return dfl(logits, positions, weight=weight, avg_factor=avg_factor, reduction=reduction)


def bin_positions(distances: Tensor, bins: Tensor) -> Tensor:
    """Positions d of distances among the values of the bins, as `dfl` takes them: n + s for W(n)·(1 − s) + W(n + 1)·s.

    Args:
        distances: any shape, in the unit of ``bins``; beyond the first bin the position is 0, beyond the last R − 1.
        bins: (R,) values W of the bins, increasing (an error under ``GFLV2_CHECK=1`` where they are not); results are
            undefined otherwise.

    Returns:
        As ``distances``, in float32 (float64 where one of them is float64), without a gradient. A NaN stays one.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
    """
    check_tensor(distances, "distances")
    _check_values(bins, distances.device, None)
    dtype = compute_dtype(distances.dtype)
    if bins.dtype.itemsize == 8:
        dtype = bins.dtype
    return reference.bin_positions(distances.to(dtype), bins.to(dtype))


def _check_values(bins: Any, device: Any, count: int | None) -> None:
    check_tensor(bins, "bins", shape=(count,), device=device)
    if bins.shape[0] < 2:
        bad_value("bins", "two values or more", bins)
    if values_are_checked() and not bool((bins.diff() > 0).all()):
        bad_value("bins", "increasing values", bins.tolist())


def _describe(logits: Any, target: Any, bins: Any, *_: Any, **__: Any) -> backends.Call:
    check_bins(logits)
    check_tensor(target, "target", shape=logits.shape[:1], device=logits.device)
    _check_values(bins, logits.device, logits.shape[1])
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


backends.register("fgl", backends.EVERYWHERE, _describe)  # it runs the operation of `dfl`
