"""``qfl`` in Triton: Quality Focal Loss (2006.04388, equation 5) on a logit, on class × quality, or on a probability.

How a program goes through its part of the score map, and the arithmetic: `class_maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton.language as tl
from torch import Tensor

from gflv2.kernels.class_maps import (
    as_levels,
    gradients_of,
    load_labelled,
    load_labels,
    load_quality,
    loss_of,
    shape_of,
    sum_losses,
    write_gradients,
)
from gflv2.kernels.launching import kernel
from gflv2.kernels.levels import cells_of, extent_of, find_block, has_pairs, level_arguments, open_map, open_pairs
from gflv2.kernels.row_losses import launch_gradients, launch_losses, reduce_rows, upstream_of_rows
from gflv2.ops.reduction import Reduction

_FORMS = {"logits": 0, "class_logits": 1, "probabilities": 2}


@kernel
def qfl_forward_kernel(
    out,  # (B, A) or (N,) float32, contiguous, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    weight,  # (B, A) or (N,) float32, contiguous, or None
    values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7,  # (B, C, H_l, W_l) or (N, 1, C)
    levels,  # their table, see levels.level_arguments
    quality,  # (B, A) or (N,) float32, contiguous, or None
    labels,  # (B, A) or (N,) int64, contiguous, or None: the target is dense
    scores,  # (B, A) or (N,) float32, contiguous; dense: (N, C) with the two strides below
    score_row: tl.int64, score_class: tl.int64, beta: tl.float32,
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    classes: tl.int32,
    FORM: tl.constexpr,
    HALVES: tl.constexpr,  # twice β where it is 2, else 0
    AXIS: tl.constexpr,  # of the classes in the tile: 0 with the points last (NCHW), 1 with the classes last
    TOUCHING: tl.constexpr,  # neighbours in the tile's last dimension are neighbours in memory
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program, and what their classes share.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7)
    values = open_map(every, levels, block, cells, AXIS, TOUCHING)
    point = load_quality(quality, rows, live, FORM)
    own = None
    if labels is not None:
        own = load_labels(labels, rows, live, classes)

    # 2. All elements; with labels, those of the labels are left out. Neighbouring points are read in pairs where memory
    #    allows it.
    if has_pairs(every, levels, (None,), None, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        losses = sum_losses(
            pairs, point, scores, own, rows, score_row, score_class, exist, classes, beta, FORM, HALVES, AXIS, TILE
        )
    else:
        losses = sum_losses(
            values, point, scores, own, rows, score_row, score_class, live, classes, beta, FORM, HALVES, AXIS, TILE
        )

    # 3. Those of the labels.
    if labels is not None:
        hit, value, target = load_labelled(values, scores, own, rows)
        losses += tl.where(hit, loss_of(value, point, target, beta, FORM, HALVES, False), 0.0)
    reduce_rows(losses, weight, out, partials, rows, live)


@kernel
def qfl_backward_kernel(
    upstream,  # of the result: (B, A) or (N,) float32, contiguous; () with TOTAL
    weight,  # as in forward
    factor,  # () float32: one more divisor of the total, or None
    divisor: tl.float32,
    values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7, levels,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, grad_levels,  # shaped as the values, or None
    quality, labels, scores,  # as in forward
    grad_quality,  # (B, A) or (N,) float32, contiguous, or None
    score_row: tl.int64, score_class: tl.int64, beta: tl.float32, blocks: tl.int32, total: tl.int64,
    classes: tl.int32,
    TOTAL: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program, and what their classes share.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7)
    every_grad = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    values = open_map(every, levels, block, cells, AXIS, TOUCHING)
    given = upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL)
    point = load_quality(quality, rows, live, FORM)

    # 2. The elements of the labels.
    own, of_label = None, None
    if labels is not None:
        own = load_labels(labels, rows, live, classes)
        hit, value, target = load_labelled(values, scores, own, rows)
        of_label, of_quality = gradients_of(value, point, target, beta, FORM, HALVES, False, False)
        of_label *= given
        of_quality = tl.where(hit, of_quality, 0.0)

    # 3. The others, and what the labels' have become. Neighbouring points are read and written in pairs where memory
    #    allows it.
    if has_pairs(every, levels, every_grad, grad_levels, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        grad_pairs = pairs
        if grad_0 is not None:
            grad_pairs, _ = open_pairs(every_grad, grad_levels, block, cells)
        total_of_quality = write_gradients(
            pairs, grad_pairs, point, given, of_label, scores, own, rows, score_row, score_class, exist, classes, beta,
            grad_0 is not None, FORM, HALVES, False, AXIS, TILE,
        )  # fmt: skip
    else:
        grad = values
        if grad_0 is not None:
            grad = open_map(every_grad, grad_levels, block, cells, AXIS, TOUCHING)
        total_of_quality = write_gradients(
            values, grad, point, given, of_label, scores, own, rows, score_row, score_class, live, classes, beta,
            grad_0 is not None, FORM, HALVES, False, AXIS, TILE,
        )  # fmt: skip

    # 4. The quality's gradient.
    if grad_quality is not None:
        if labels is not None:
            total_of_quality += of_quality
        tl.store(grad_quality + rows, total_of_quality * given, mask=live)


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
    """Write the losses of the rows, or their total, into ``out``, float32 contiguous.

    Args:
        values: L levels (B, C, H, W), or [rows (N, C)]; float32, float16 or bfloat16, any strides.
        quality: (B, A) or (N,) float32 contiguous with form "class_logits", else None.
        labels: (B, A) or (N,) int64 contiguous; None: the target is dense.
        scores: (B, A) or (N,) float32 contiguous; dense: (N, C) float32, any strides.
        reduction: of which a mean has become a sum.
    """
    levels = as_levels(values)
    shape = _shape(levels, levels, form, beta)
    extent = extent_of(levels, shape["BLOCK"])
    targets = (quality, labels, scores, *_score_strides(labels, scores))
    sizes = (extent.blocks, extent.points, values[0].shape[1])
    arguments = (*level_arguments(levels), *targets, beta, *sizes)
    launch_losses(qfl_forward_kernel, extent.programs, reduction, out, arguments, shape)


def qfl_backward(
    grad: Tensor,
    values: Sequence[Tensor],
    quality: Tensor | None,
    labels: Tensor | None,
    scores: Tensor,
    form: str,
    beta: float,
    reduction: Reduction,
    grad_values: Sequence[Tensor],
    grad_quality: Tensor | None,
) -> None:
    """Write the gradients that are wanted.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        grad_values: tensors shaped as ``values``, in their dtype, any strides; empty: not wanted.
        grad_quality: like ``quality``, or None: not wanted.
    """
    levels, gradients = as_levels(values), as_levels(grad_values)
    shape = _shape(levels, [*levels, *gradients], form, beta)
    extent = extent_of(levels, shape["BLOCK"])
    targets = (quality, labels, scores, grad_quality, *_score_strides(labels, scores))
    sizes = (extent.blocks, extent.points, values[0].shape[1])
    arguments = (*level_arguments(levels), *level_arguments(gradients), *targets, beta, *sizes)
    launch_gradients(qfl_backward_kernel, extent.programs, reduction, grad, arguments, shape)


def _score_strides(labels: Tensor | None, scores: Tensor) -> tuple[int, ...]:
    return scores.stride() if labels is None else (0, 0)


def _shape(levels: Sequence[Tensor], touched: Sequence[Tensor], form: str, beta: float) -> dict[str, Any]:
    return {"FORM": _FORMS[form], **shape_of(levels, touched, 4 if beta == 2 else 0)}
