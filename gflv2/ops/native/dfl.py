"""The native ``dfl``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the logits are float64. A `Reduction` comes from
``Reduction.on``; results are (N,) or () tensors in S, contiguous, and so are their gradients.
"""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.native.loading import library
from gflv2.ops.native.reduction import describe_reduction, row_workspace
from gflv2.ops.native.tensors import DTYPES, place, pointer
from gflv2.ops.reduction import Reduction


def dfl_forward(logits: Tensor, target: Tensor, reduction: Reduction, out: Tensor) -> None:
    """Losses of the rows, or their total, written to ``out``.

    Args:
        logits: (N, R), any strides.
        target: (N,) S, contiguous.
    """
    _dfl(False, logits, target, reduction, out, None, None)


def dfl_backward(
    grad: Tensor | None,
    logits: Tensor,
    target: Tensor,
    reduction: Reduction,
    grad_logits: Tensor,
    out: Tensor | None = None,
) -> None:
    """Gradient, written to ``grad_logits`` (like ``logits``). On a CPU ``grad`` may be None, which means 1, and the
    result is written too where ``out`` is given."""
    _dfl(True, logits, target, reduction, out, grad, grad_logits)


def _dfl(
    backward: bool,
    logits: Tensor,
    target: Tensor,
    reduction: Reduction,
    out: Tensor | None,
    grad: Tensor | None,
    grad_logits: Tensor | None,
) -> None:
    module = library()
    device, where = place(logits)
    rows, bins = logits.shape
    workspace = row_workspace(module, "dfl", device, backward, reduction, logits)
    module.dfl(
        backward,
        device,
        where,
        DTYPES[logits.dtype],
        bins,
        rows,
        logits.data_ptr(),
        *logits.stride(),
        target.data_ptr(),
        describe_reduction(module, reduction, out, grad),
        pointer(grad_logits),
        *((0, 0) if grad_logits is None else grad_logits.stride()),
        pointer(workspace),
    )
