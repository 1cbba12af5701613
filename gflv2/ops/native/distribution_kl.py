"""The native ``distribution_kl``, called with torch tensors.

A `Reduction` comes from ``Reduction.on``; results are (N,) or () tensors in the dtype of the arithmetic (float32, or
float64 where the logits are float64), contiguous, and so are their gradients.
"""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.native.loading import library
from gflv2.ops.native.reduction import describe_reduction, row_workspace
from gflv2.ops.native.tensors import DTYPES, place, pointer
from gflv2.ops.reduction import Reduction


def distribution_kl_forward(
    logits: Tensor, teacher: Tensor, temperature: float, reduction: Reduction, out: Tensor
) -> None:
    """Losses of the rows, or their total, written to ``out``.

    Args:
        logits: (N, R) of the student, any strides.
        teacher: (N, R), any strides; float64 where the logits are, and only there.
    """
    _distribution_kl(False, logits, teacher, temperature, reduction, out, None, None)


def distribution_kl_backward(
    grad: Tensor | None,
    logits: Tensor,
    teacher: Tensor,
    temperature: float,
    reduction: Reduction,
    grad_logits: Tensor,
    out: Tensor | None = None,
) -> None:
    """Gradient, written to ``grad_logits`` (like ``logits``). On a CPU ``grad`` may be None, which means 1, and the
    result is written too where ``out`` is given."""
    _distribution_kl(True, logits, teacher, temperature, reduction, out, grad, grad_logits)


def _distribution_kl(
    backward: bool,
    logits: Tensor,
    teacher: Tensor,
    temperature: float,
    reduction: Reduction,
    out: Tensor | None,
    grad: Tensor | None,
    grad_logits: Tensor | None,
) -> None:
    module = library()
    device, where = place(logits)
    rows, bins = logits.shape
    workspace = row_workspace(module, "distribution_kl", device, backward, reduction, logits)
    module.distribution_kl(
        backward,
        device,
        where,
        bins,
        rows,
        _rows(logits),
        _rows(teacher),
        temperature,
        describe_reduction(module, reduction, out, grad),
        pointer(grad_logits),
        *((0, 0) if grad_logits is None else grad_logits.stride()),
        pointer(workspace),
    )


def _rows(tensor: Tensor) -> tuple[int, int, int, int]:
    return DTYPES[tensor.dtype], tensor.data_ptr(), *tensor.stride()
