"""The native quality predictor, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.native.loading import library
from gflv2.ops.native.tensors import DTYPES, check_dense, place


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
    check_dense(out, "out", compute_dtype(logits[0].dtype))
    library().dgqp_forward(
        place(logits[0]), **predictor_fields(logits, predictor, scales, topk, mean, variance), out=out
    )


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
    library().dgqp_backward(
        place(logits[0]),
        **predictor_fields(logits, predictor, scales, topk, mean, variance),
        **gradient_fields(grad_out, logits, grad_logits, grad_predictor, grad_scales),
    )


def predictor_fields(
    logits: Sequence[Tensor],
    predictor: Sequence[Tensor],
    scales: Tensor | None,
    topk: int,
    mean: bool,
    variance: bool,
) -> dict[str, Any]:
    """The fields of forward, which backward has too."""
    weight1, bias1, weight2, bias2 = predictor or _NO_LAYERS
    return {
        "dtype": DTYPES[logits[0].dtype],
        "levels": logits,
        "scales": scales,
        "topk": topk,
        "mean": mean,
        "variance": variance,
        "hidden": weight1.shape[0] if predictor else 0,
        "weight1": weight1,
        "bias1": bias1,
        "weight2": weight2,
        "bias2": bias2,
    }


def gradient_fields(
    grad_out: Tensor | None,
    logits: Sequence[Tensor],
    grad_logits: Sequence[Tensor],
    grad_predictor: Sequence[Tensor],
    grad_scales: Tensor | None,
) -> dict[str, Any]:
    """The fields of backward alone."""
    dtype = compute_dtype(logits[0].dtype)
    for name, tensor in (("grad_out", grad_out), ("grad_scales", grad_scales)):
        if tensor is not None:
            check_dense(tensor, name, dtype)
    weight1, bias1, weight2, bias2 = grad_predictor or _NO_LAYERS
    return {
        "grad_levels": grad_logits,
        "grad_out": grad_out,
        "grad_scales": grad_scales,
        "grad_weight1": weight1,
        "grad_bias1": bias1,
        "grad_weight2": weight2,
        "grad_bias2": bias2,
    }


_NO_LAYERS = (None, None, None, None)
