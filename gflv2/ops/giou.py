"""``giou``: Generalised IoU loss of aligned boxes (arXiv 1902.09630), and ``iou``, the quality that QFL learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.checks import check_number, check_tensor, compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.one_pass import one_pass, ordinary, prepared
from gflv2.ops.reduction import ARGUMENTS, Reduction, check_reduction, dense, resolve
from gflv2.ops.reference import giou as reference

# `loss`: 1 − GIoU; else the IoU.
_ARGUMENTS = f"Tensor pred, Tensor target, bool loss, float eps, {ARGUMENTS}, str backend"
_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(f"giou({_ARGUMENTS}) -> Tensor")
_library.define(f"giou_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) -> Tensor[]")
_giou, _giou_backward = torch.ops.gflv2.giou.default, torch.ops.gflv2.giou_backward.default


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
        pred: (N, 4) boxes (x1, y1, x2, y2), any unit, any strides. float32, float16, bfloat16 or float64.
        target: (N, 4) boxes in the same unit.
        weight: (N,) factor of each pair.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean".
        eps: smallest area, in the square of the unit.

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 boxes), each in [0, 2]; 0 for no pairs. Differentiable
        in both boxes, once. Where two sides coincide they share the gradient; at an intersection of width 0 it is 0.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(pred, target, eps=eps)
    check_reduction(weight, avg_factor, reduction, shape=pred.shape[:1], device=pred.device)
    backend = backends.select("giou", call)
    if backend == "reference":
        return reference.giou(pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction, eps=eps)
    return _run(pred, target, True, eps, resolve(weight, avg_factor, reduction), backend)


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
    backend = backends.select("iou", _describe(pred, target, eps=eps))
    if backend == "reference":
        return reference.iou(pred, target, eps=eps)
    return _run(pred, target, False, eps, resolve(None, None, "none"), backend)


def _run(pred: Tensor, target: Tensor, loss: bool, eps: float, reduction: Reduction, backend: str) -> Tensor:
    arguments = (pred, target, loss, float(eps), *reduction, backend)
    if torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad):
        return _Giou.apply(*arguments)
    return _giou(*arguments)


def _describe(pred: Any, target: Any, *_: Any, eps: float = 1e-6, **__: Any) -> backends.Call:
    check_tensor(pred, "pred", shape=(None, 4))
    check_tensor(target, "target", shape=(pred.shape[0], 4), device=pred.device)
    check_number(eps, "eps", above=0)
    return backends.Call(pred.device, pred.dtype, {})


for _name in ("giou", "iou"):
    backends.register(
        _name,
        backends.EVERYWHERE,
        _describe,
    )


class _Giou(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred, target, loss, eps, weight, factor, divisor, reduction, backend) -> Tensor:
        ctx.save_for_backward(pred, target, weight, factor)
        ctx.settings = (loss, eps), (divisor, reduction, backend)
        ctx.one_pass = one_pass(backend, reduction, pred, target)
        arguments = (pred, target, loss, eps, weight, factor, divisor, reduction, backend)
        if not ctx.one_pass:
            return _giou(*arguments)
        ctx.prepared = _new_gradients(pred, target, ctx.needs_input_grad)
        return _forward(*arguments, ctx.prepared, ctx.needs_input_grad)

    @staticmethod
    @no_double_backward("giou")
    def backward(ctx: Any, grad: Tensor):
        pred, target, weight, factor = ctx.saved_tensors
        kind, settings = ctx.settings
        needs = list(ctx.needs_input_grad[:2])
        arguments = (pred, target, *kind, weight, factor, *settings)

        def again() -> list[Tensor]:
            found = _new_gradients(pred, target, needs)
            _forward(*arguments, found, needs)
            return found

        if ctx.one_pass and ordinary(grad):
            gradients = prepared(ctx, grad, again)
        else:
            gradients = _giou_backward(grad, *arguments, needs)
        return *_by_box(gradients, needs), *[None] * 7


def _new_gradients(pred: Tensor, target: Tensor, needs: Sequence[bool]) -> list[Tensor]:
    return [box.new_empty(box.shape) for box, wanted in zip((pred, target), needs[:2], strict=True) if wanted]


def _by_box(gradients: list[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Of pred and of target."""
    return gradients[0] if needs[0] else None, gradients[-1] if needs[1] else None


def _forward(pred, target, loss, eps, weight, factor, divisor, reduction, backend, gradients=None, needs=()) -> Tensor:
    """With ``gradients``, of those that are needed, they are written too: boxes of one dtype."""
    reduction, rows = Reduction(weight, factor, divisor, reduction), pred.shape[:1]
    out = reduction.new_result(rows, pred)
    if not pred.numel():
        return out.zero_()
    target, reduction = dense(target, out.dtype), reduction.on(rows, out.dtype)
    kernels, arguments = implementation("giou", backend), (pred, target, loss, eps, reduction)
    if gradients is None:
        kernels.giou_forward(*arguments, out)
    else:
        kernels.giou_backward(None, *arguments, *_by_box(gradients, needs), out)
    return out


def _backward(grad, pred, target, loss, eps, weight, factor, divisor, reduction, backend, needs) -> list[Tensor]:
    gradients = _new_gradients(pred, target, needs)
    if not pred.numel():
        return gradients
    dtype = compute_dtype(pred.dtype)
    given = dense(target, dtype)
    # The target's gradient is formed in the dtype of the arithmetic, and rounded once to its own.
    grad_target = torch.empty_like(given) if needs[1] else None
    reduction = Reduction(weight, factor, divisor, reduction).on(pred.shape[:1], dtype)
    grad_pred, _ = _by_box(gradients, needs)
    arguments = (grad.contiguous(), pred, given, loss, eps, reduction, grad_pred, grad_target)
    implementation("giou", backend).giou_backward(*arguments)
    if needs[1]:
        gradients[-1].copy_(grad_target)
    return gradients


for _key in ("CPU", "CUDA"):
    _library.impl("giou", _forward, _key)
    _library.impl("giou_backward", _backward, _key)
no_vmap("giou", _library)


@torch.library.register_fake("gflv2::giou", lib=_library)
def _(pred, target, loss, eps, weight, factor, divisor, reduction, backend) -> Tensor:
    return Reduction(weight, factor, divisor, reduction).new_result(pred.shape[:1], pred)


@torch.library.register_fake("gflv2::giou_backward", lib=_library)
def _(grad, pred, target, loss, eps, weight, factor, divisor, reduction, backend, needs) -> list[Tensor]:
    return _new_gradients(pred, target, needs)
