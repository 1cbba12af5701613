"""``distribution_kl``: how far a student's distributions are from a teacher's (LD, arXiv 2102.12252)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.checks import bad_value, check_number, check_tensor, compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import BINS_LIMITS
from gflv2.ops.one_pass import one_pass, ordinary, prepared
from gflv2.ops.reduction import ARGUMENTS, Reduction, check_reduction, resolve
from gflv2.ops.reference import distribution_kl as reference

_INPUTS = f"Tensor logits, Tensor teacher, float temperature, {ARGUMENTS}, str backend"
_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(f"distribution_kl({_INPUTS}) -> Tensor")
_library.define(f"distribution_kl_backward(Tensor grad, {_INPUTS}) -> Tensor")
_kl, _kl_backward = torch.ops.gflv2.distribution_kl.default, torch.ops.gflv2.distribution_kl_backward.default


def distribution_kl(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """T²/R · KL(P_t ‖ P_s) with P_s = softmax(z/T) of the student's logits of a box side and P_t of the teacher's.

    The divergence is divided by the number of bins R, as in mmdet's ``KnowledgeDistillationKLDivLoss`` and in the
    paper's own code, so that their loss weights carry over; times R it is the plain sum over the bins.

    Args:
        logits: (N, R) of the student, one row a box side, any strides. float32, float16, bfloat16 or float64.
        teacher_logits: (N, R), any strides, any of these dtypes; a constant, no gradient goes to it.
        temperature: T > 0; the default is mmdet's.
        weight: (N,) factor of each row.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean", over the rows.

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 logits); 0 for no rows. Differentiable in ``logits``
        only, once: the derivative of a row is T/R · (P_s − P_t).

    Raises:
        TypeError, ValueError: a wrong shape, dtype, device or temperature; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(logits, teacher_logits, temperature=temperature)
    check_reduction(weight, avg_factor, reduction, shape=logits.shape[:1], device=logits.device)
    backend = backends.select("distribution_kl", call)
    if backend == "reference":
        options = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
        return reference.distribution_kl(logits, teacher_logits, temperature=temperature, **options)
    arguments = (teacher_logits.detach(), float(temperature), *resolve(weight, avg_factor, reduction), backend)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _DistributionKL.apply(logits, *arguments)
    return _kl(logits, *arguments)


def _describe(logits: Any, teacher_logits: Any, *, temperature: Any = 10.0, **_: Any) -> backends.Call:
    check_tensor(logits, "logits", shape=(None, None))
    low, high = BINS_LIMITS
    if not low <= logits.shape[1] <= high:
        bad_value("logits", f"{low} to {high} bins a row", logits)
    check_tensor(teacher_logits, "teacher_logits", shape=logits.shape, device=logits.device)
    check_number(temperature, "temperature", above=0)
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


backends.register(
    "distribution_kl",
    backends.EVERYWHERE,
    _describe,
)


class _DistributionKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, teacher, temperature, weight, factor, divisor, reduction, backend) -> Tensor:
        ctx.save_for_backward(logits, teacher, weight, factor)
        ctx.settings = (divisor, reduction, backend)
        ctx.temperature = temperature
        ctx.one_pass = one_pass(backend, reduction, logits)
        arguments = (logits, teacher, temperature, weight, factor, *ctx.settings)
        if not ctx.one_pass:
            return _kl(*arguments)
        ctx.prepared = [torch.empty_like(logits)]
        return _forward(*arguments, *ctx.prepared)

    @staticmethod
    @no_double_backward("distribution_kl")
    def backward(ctx: Any, grad: Tensor):
        logits, teacher, weight, factor = ctx.saved_tensors
        arguments = (logits, teacher, ctx.temperature, weight, factor, *ctx.settings)
        if not (ctx.one_pass and ordinary(grad)):
            return _kl_backward(grad, *arguments), *[None] * 7

        def again() -> list[Tensor]:
            grad_logits = torch.empty_like(logits)
            _forward(*arguments, grad_logits)
            return [grad_logits]

        return *prepared(ctx, grad, again), *[None] * 7


def _comparable(teacher: Tensor, logits: Tensor) -> Tensor:
    """The teacher's logits as the kernels take them: copied only where one of the two is float64, the other not."""
    dtype = compute_dtype(logits.dtype)
    return teacher if compute_dtype(teacher.dtype) == dtype else teacher.to(dtype)


def _forward(logits, teacher, temperature, weight, factor, divisor, reduction, backend, grad_logits=None) -> Tensor:
    """With ``grad_logits`` the gradient is written too."""
    reduction, rows = Reduction(weight, factor, divisor, reduction), logits.shape[:1]
    out = reduction.new_result(rows, logits)
    if not logits.numel():
        return out.zero_()
    inputs = (logits, _comparable(teacher, logits), temperature, reduction.on(rows, out.dtype))
    kernels = implementation("distribution_kl", backend)
    if grad_logits is None:
        kernels.distribution_kl_forward(*inputs, out)
    else:
        kernels.distribution_kl_backward(None, *inputs, grad_logits, out)
    return out


def _backward(grad, logits, teacher, temperature, weight, factor, divisor, reduction, backend) -> Tensor:
    grad_logits = torch.empty_like(logits)
    if logits.numel():
        reduction = Reduction(weight, factor, divisor, reduction).on(logits.shape[:1], compute_dtype(logits.dtype))
        inputs = (logits, _comparable(teacher, logits), temperature, reduction)
        implementation("distribution_kl", backend).distribution_kl_backward(grad.contiguous(), *inputs, grad_logits)
    return grad_logits


for _key in ("CPU", "CUDA"):
    _library.impl("distribution_kl", _forward, _key)
    _library.impl("distribution_kl_backward", _backward, _key)
no_vmap("distribution_kl", _library)


@torch.library.register_fake("gflv2::distribution_kl", lib=_library)
def _(logits, teacher, temperature, weight, factor, divisor, reduction, backend) -> Tensor:
    return Reduction(weight, factor, divisor, reduction).new_result(logits.shape[:1], logits)


@torch.library.register_fake("gflv2::distribution_kl_backward", lib=_library)
def _(grad, logits, *_settings) -> Tensor:
    return torch.empty_like(logits)
