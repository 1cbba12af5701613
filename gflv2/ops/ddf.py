"""``ddf``: decoupled distillation focal loss (D-FINE, arXiv 2410.13842)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor, compute_dtype, values_are_checked
from gflv2.ops.distribution_kl import distribution_kl
from gflv2.ops.levels import check_bins
from gflv2.ops.reference import ddf as reference


def ddf(
    logits: Tensor,
    teacher_logits: Tensor,
    matched: Tensor,
    *,
    weight: Tensor,
    temperature: float = 5.0,
    balance: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    """(a·M₁ + b·M₀) / (a + b) with the means M₁ over the matched rows and M₀ over the others of w·T²·KL(P_t ‖ P_s).

    P = softmax(z/T). a and b are the square roots of the two counts of rows. In D-FINE the student is a layer of the
    decoder and the teacher its last one; w is the IoU of a matched query, else the teacher's highest class probability.
    It is `distribution_kl` with a factor for each row, on its kernels; the divergence is the plain sum over the bins.

    Args:
        logits: (N, R) of the student, one row a box side, any strides. float32, float16, bfloat16 or float64.
        teacher_logits: (N, R), any strides, any of these dtypes; a constant, no gradient goes to it.
        matched: (N,) bool, the rows of queries that a box was assigned to. A mean over no rows is 0.
        weight: (N,) w, a constant.
        temperature: T > 0; the default is D-FINE's.
        balance: a and b, numbers or 0-d tensors, where they are not those of this call: D-FINE takes those of another
            one for its denoising queries. ≥ 0 (tensors: an error under ``GFLV2_CHECK=1`` where they are not). With two
            zeros the loss is 0.

    Returns:
        0-d; float32 (float64 for float64 logits); 0 for no rows. Differentiable in ``logits`` only, once. Nothing waits
        for the device.

    Raises:
        TypeError, ValueError: a wrong shape, dtype, device or temperature; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(logits, teacher_logits, matched, weight=weight, temperature=temperature, balance=balance)
    if backends.select("ddf", call) == "reference":
        options = {"weight": weight, "temperature": temperature, "balance": balance}
        return reference.ddf(logits, teacher_logits, matched, **options)
    dtype = compute_dtype(logits.dtype)
    factor = reference.shares(matched, balance, dtype) * weight.detach().to(dtype) * logits.shape[1]
    return distribution_kl(logits, teacher_logits, temperature=temperature, weight=factor, reduction="sum")


def _describe(
    logits: Any,
    teacher_logits: Any,
    matched: Any,
    *_: Any,
    weight: Any = None,
    temperature: Any = 5.0,
    balance: Any = None,
    **__: Any,
) -> backends.Call:
    check_bins(logits)
    rows, device = logits.shape[:1], logits.device
    check_tensor(teacher_logits, "teacher_logits", shape=logits.shape, device=device)
    check_tensor(matched, "matched", shape=rows, dtypes=(torch.bool,), device=device)
    check_tensor(weight, "weight", shape=rows, device=device)
    check_number(temperature, "temperature", above=0)
    if balance is not None:
        if not isinstance(balance, (tuple, list)) or len(balance) != 2:
            bad_type("balance", "two numbers or 0-d tensors", balance)
        for part in balance:
            if not isinstance(part, Tensor):
                check_number(part, "balance", least=0)
            elif part.dim() != 0:
                bad_value("balance", "two numbers or 0-d tensors", part)
            elif values_are_checked():
                check_number(float(part), "balance", least=0)
    return backends.Call(device, logits.dtype, {"bins": logits.shape[1]})


backends.register("ddf", backends.EVERYWHERE, _describe)  # it runs the operation of `distribution_kl`
