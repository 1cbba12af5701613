"""``dfl``: Distribution Focal Loss (arXiv 2006.04388, equation 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.checks import bad_value, check_tensor, compute_dtype, values_are_checked
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import BINS_LIMITS
from gflv2.ops.one_pass import one_pass, ordinary, prepared
from gflv2.ops.reduction import ARGUMENTS, Reduction, check_reduction, dense, resolve
from gflv2.ops.reference import dfl as reference

_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(f"dfl(Tensor logits, Tensor target, {ARGUMENTS}, str backend) -> Tensor")
_library.define(f"dfl_backward(Tensor grad, Tensor logits, Tensor target, {ARGUMENTS}, str backend) -> Tensor")
_dfl, _dfl_backward = torch.ops.gflv2.dfl.default, torch.ops.gflv2.dfl_backward.default


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
        (N,) for "none", else 0-d; float32 (float64 for float64 logits); 0 for no rows. Differentiable in ``logits``
        only, once.

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
    arguments = (target.detach(), *resolve(weight, avg_factor, reduction), backend)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Dfl.apply(logits, *arguments)
    return _dfl(logits, *arguments)


def _describe(logits: Any, *_: Any, **__: Any) -> backends.Call:
    check_tensor(logits, "logits", shape=(None, None))
    low, high = BINS_LIMITS
    if not low <= logits.shape[1] <= high:
        bad_value("logits", f"{low} to {high} bins a row", logits)
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


backends.register(
    "dfl",
    backends.EVERYWHERE,
    _describe,
)


class _Dfl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, target, weight, factor, divisor, reduction, backend) -> Tensor:
        ctx.save_for_backward(logits, target, weight, factor)
        ctx.settings = (divisor, reduction, backend)
        ctx.one_pass = one_pass(backend, reduction, logits)
        if not ctx.one_pass:
            return _dfl(logits, target, weight, factor, *ctx.settings)
        ctx.prepared = [torch.empty_like(logits)]
        return _forward(logits, target, weight, factor, *ctx.settings, *ctx.prepared)

    @staticmethod
    @no_double_backward("dfl")
    def backward(ctx: Any, grad: Tensor):
        saved, settings = ctx.saved_tensors, ctx.settings
        if not (ctx.one_pass and ordinary(grad)):
            return _dfl_backward(grad, *saved, *settings), *[None] * 6

        def again() -> list[Tensor]:
            grad_logits = torch.empty_like(saved[0])
            _forward(*saved, *settings, grad_logits)
            return [grad_logits]

        return *prepared(ctx, grad, again), *[None] * 6


def _forward(logits, target, weight, factor, divisor, reduction, backend, grad_logits=None) -> Tensor:
    """With ``grad_logits`` the gradient is written too."""
    reduction, rows = Reduction(weight, factor, divisor, reduction), logits.shape[:1]
    out = reduction.new_result(rows, logits)
    if not logits.numel():
        return out.zero_()
    target, reduction = dense(target, out.dtype), reduction.on(rows, out.dtype)
    kernels = implementation("dfl", backend)
    if grad_logits is None:
        kernels.dfl_forward(logits, target, reduction, out)
    else:
        kernels.dfl_backward(None, logits, target, reduction, grad_logits, out)
    return out


def _backward(grad, logits, target, weight, factor, divisor, reduction, backend) -> Tensor:
    grad_logits = torch.empty_like(logits)
    if logits.numel():
        dtype = compute_dtype(logits.dtype)
        target = dense(target, dtype)
        reduction = Reduction(weight, factor, divisor, reduction).on(logits.shape[:1], dtype)
        implementation("dfl", backend).dfl_backward(grad.contiguous(), logits, target, reduction, grad_logits)
    return grad_logits


for _key in ("CPU", "CUDA"):
    _library.impl("dfl", _forward, _key)
    _library.impl("dfl_backward", _backward, _key)
no_vmap("dfl", _library)


@torch.library.register_fake("gflv2::dfl", lib=_library)
def _(logits, target, weight, factor, divisor, reduction, backend) -> Tensor:
    return Reduction(weight, factor, divisor, reduction).new_result(logits.shape[:1], logits)


@torch.library.register_fake("gflv2::dfl_backward", lib=_library)
def _(grad, logits, *_settings) -> Tensor:
    return torch.empty_like(logits)
