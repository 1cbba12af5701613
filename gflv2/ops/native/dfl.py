"""The native ``dfl``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the logits are float64. A `Reduction` comes from
``Reduction.over``; results are (N,) or () tensors in S, contiguous, and so are their gradients.
"""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.native.tensors import native
from gflv2.ops.reduction import Reduction


@native
def dfl_forward(logits: Tensor, target: Tensor, reduction: Reduction, out: Tensor) -> None:
    """Losses of the rows, or their total, written to ``out``.

    Args:
        logits: (N, R), any strides.
        target: (N,) S, contiguous.
    """


@native
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
