"""The native quality predictor, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.native.tensors import native


@native
def dgqp_forward(
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    out: Tensor,
) -> None:
    """Quality logits of every point, or the statistics alone, written to ``out``. All tensors lie on one device.

    Args:
        logits, scales: as in `gflv2.ops.native.integral.integral_forward`.
        predictor: weight1 (hidden, F), bias1 (hidden,), weight2 (hidden,), bias2 (1,), contiguous, in the dtype of the
            arithmetic; empty: the statistics are wanted.
        topk, mean, variance: F = 4·(topk + mean + variance).
        out: (B, A) or (M,) with a predictor, else (B, A, F) or (M, F); contiguous, in the dtype of the arithmetic.
    """


@native
def dgqp_backward(
    grad_out: Tensor | None,
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
) -> None:
    """Gradients of ``dgqp_forward``, written to ``grad_logits``, ``grad_predictor`` and ``grad_scales``.

    Args:
        grad_out: gradient of ``out``, contiguous.
        grad_logits: like ``logits``, any strides without overlap; empty where they are not wanted.
        grad_predictor: like ``predictor``, contiguous; empty where they are not wanted.
        grad_scales: (L,), contiguous, in the dtype of the arithmetic; None where it is not wanted.
        The rest: as in ``dgqp_forward``.
    """
