"""The native ``integral``, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.native.tensors import native


@native
def integral_forward(
    logits: Sequence[Tensor],
    projection: Tensor,
    scales: Tensor | None,
    points: Tensor | None,
    point_strides: Tensor | None,
    strides: Sequence[float],
    offset: float,
    out: Tensor,
) -> None:
    """Distances or boxes of every row, written to ``out``. All tensors lie on one device.

    Args:
        logits: 1 to 8 levels (B, 4·R, H, W), or one tensor of rows (M, 4, R); any strides.
        projection: (R,), in the dtype of the arithmetic (float32, or float64 for float64 logits).
        scales: (L,), same dtype; None: 1.
        points, point_strides: with rows, (M, 2) and (M,) in pixels, same dtype: boxes are wanted. These and the two
            above are contiguous.
        strides: with levels, L numbers in pixels: boxes are wanted; empty: distances.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        out: (B, A, 4) or (M, 4), contiguous, in the dtype of the arithmetic.
    """


@native
def integral_backward(
    grad_out: Tensor,
    logits: Sequence[Tensor],
    projection: Tensor,
    scales: Tensor | None,
    points: Tensor | None,
    point_strides: Tensor | None,
    strides: Sequence[float],
    offset: float,
    grad_logits: Sequence[Tensor],
    grad_projection: Tensor | None,
    grad_scales: Tensor | None,
) -> None:
    """Gradients of ``integral_forward``, written to ``grad_logits``, ``grad_projection`` and ``grad_scales``.

    Args:
        grad_out: gradient of ``out``, contiguous.
        grad_logits: like ``logits``, any strides without overlap; empty where they are not wanted.
        grad_projection, grad_scales: (R,) and (L,), contiguous, in the dtype of the arithmetic; None where not wanted.
        The rest: as in ``integral_forward``.
    """
