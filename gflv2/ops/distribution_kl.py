"""``distribution_kl``: how far a student's distributions are from a teacher's (LD, arXiv 2102.12252)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import check_number, check_tensor, compute_dtype
from gflv2.ops.levels import check_bins
from gflv2.ops.reduction import Loss, read_reduction
from gflv2.ops.reference import distribution_kl as reference
from gflv2.ops.registration import constant, like_map


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
        (N,) for "none", else 0-d; float32 (float64 for float64 logits); 0 for no rows, whatever the average factor.
        Differentiable in ``logits`` only, once: the derivative of a row is T/R · (P_s − P_t).

    Raises:
        TypeError, ValueError: a wrong shape, dtype, device or temperature; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(logits, teacher_logits, temperature=temperature)
    how = read_reduction(weight, avg_factor, reduction, shape=logits.shape[:1], device=logits.device)
    backend = backends.select("distribution_kl", call)
    if backend == "reference":
        options = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
        return reference.distribution_kl(logits, teacher_logits, temperature=temperature, **options)
    teacher, dtype = constant(teacher_logits), compute_dtype(logits.dtype)
    if compute_dtype(teacher.dtype) != dtype:
        teacher = teacher.to(dtype)  # the kernels take any dtype beside another, but not float64
    return _distribution_kl.of((logits, teacher), (float(temperature),), how, backend)


def _describe(logits: Any, teacher_logits: Any, *, temperature: Any = 10.0, **_: Any) -> backends.Call:
    check_bins(logits)
    check_tensor(teacher_logits, "teacher_logits", shape=logits.shape, device=logits.device)
    check_number(temperature, "temperature", above=0)
    return backends.Call(logits.device, logits.dtype, {"bins": logits.shape[1]})


_distribution_kl = Loss(
    "distribution_kl",
    describe=_describe,
    tensors="Tensor logits, Tensor teacher",
    settings="float temperature",
    gradients={"logits": like_map},
)
