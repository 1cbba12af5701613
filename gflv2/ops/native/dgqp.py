"""The native quality predictor, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops.box_losses import SavedBoxLoss
from gflv2.ops.checks import compute_dtype
from gflv2.ops.native.loading import library
from gflv2.ops.native.tensors import check_dense, dense_arguments, describe, place, pointer


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
    kind = compute_dtype(logits[0].dtype)
    check_dense(out, "out", kind)
    keep = dense_arguments(kind, scales)
    layers, hidden = _describe_predictor(predictor, kind)
    library().dgqp_forward(
        *place(logits[0]),
        *describe(logits, ()),
        pointer(keep[0]),
        topk,
        mean,
        variance,
        hidden,
        layers,
        out.data_ptr(),
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
    box: SavedBoxLoss | None = None,
) -> None:
    """Gradients of ``dgqp_forward``, written to ``grad_logits``, ``grad_predictor`` and ``grad_scales``.

    Args:
        grad_out: gradient of ``out``, contiguous; without a predictor None: 0.
        grad_logits: like ``logits``, any strides without overlap; empty where they are not wanted.
        grad_predictor: like ``predictor``, contiguous; empty where they are not wanted.
        grad_scales: (L,), contiguous, in the dtype of the arithmetic; None where it is not wanted.
        box: the box losses, whose gradient joins in.
        The rest: as in ``dgqp_forward``.
    """
    module = library()
    kind = compute_dtype(logits[0].dtype)
    if grad_out is not None:
        check_dense(grad_out, "grad_out", kind)
    if grad_scales is not None:
        check_dense(grad_scales, "grad_scales", kind)
    keep = dense_arguments(kind, scales)
    layers, hidden = _describe_predictor(predictor, kind)
    grad_layers, grad_hidden = _describe_predictor(grad_predictor, kind)
    device, where = place(logits[0])
    dtype, bins, batch, count, levels = describe(logits, grad_logits)
    workspace = None
    if device >= 0 and (grad_predictor or grad_scales is not None):
        features = 4 * (topk + mean + variance) if grad_predictor else 0
        size = module.dgqp_workspace(levels, count, bool(grad_logits), batch, features, grad_hidden)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits[0].device)
    module.dgqp_backward(
        device,
        where,
        dtype,
        bins,
        batch,
        count,
        levels,
        bool(grad_logits),
        pointer(keep[0]),
        topk,
        mean,
        variance,
        hidden,
        layers,
        pointer(grad_out),
        pointer(grad_scales),
        grad_layers,
        None if box is None else module.BoxLossSlopes(*map(pointer, box.tensors), *box.factors),
        pointer(workspace),
    )


def _describe_predictor(predictor: Sequence[Tensor], kind: torch.dtype) -> tuple[list[int], int]:
    """Pointers of the four tensors and the number of hidden units; zeros where there is no predictor."""
    if not predictor:
        return [0] * 4, 0
    for name, tensor in zip(("weight1", "bias1", "weight2", "bias2"), predictor, strict=True):
        check_dense(tensor, name, kind)
    return [tensor.data_ptr() for tensor in predictor], predictor[0].shape[0]
