"""The native ``qfl``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the scores are float64. A `Reduction` comes from
``Reduction.over``; results are (B, A), (N,) or () tensors in S, contiguous, and so are their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.native.tensors import native
from gflv2.ops.reduction import Reduction


@native
def qfl_forward(
    values: Sequence[Tensor],
    quality: Tensor | None,
    labels: Tensor | None,
    scores: Tensor,
    form: str,
    beta: float,
    reduction: Reduction,
    out: Tensor,
) -> None:
    """Losses of the rows, or their total, written to ``out``.

    Args:
        values: L levels (B, C, H, W), or one tensor (N, C); any strides.
        quality: (B, A) or (N,) S, contiguous, with form "class_logits".
        labels: (B, A) or (N,) int64, contiguous; None: the target is dense.
        scores: (B, A) or (N,) S, contiguous; dense: (N, C) S, any strides.
    """


@native
def qfl_backward(
    grad: Tensor | None,
    values: Sequence[Tensor],
    quality: Tensor | None,
    labels: Tensor | None,
    scores: Tensor,
    form: str,
    beta: float,
    reduction: Reduction,
    grad_values: Sequence[Tensor],
    grad_quality: Tensor | None,
    out: Tensor | None = None,
) -> None:
    """Gradients, written to ``grad_values`` (like ``values``, or empty) and ``grad_quality`` (S, or None). On a CPU
    ``grad`` may be None, which means 1, and the result is written too where ``out`` is given."""
