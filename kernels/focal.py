"""``focal`` in Triton: sigmoid focal, varifocal and matchability-aware loss, and IoU-aware binary cross-entropy.

How a program goes through its part of the score map, and a negative: `class_maps`. The element of a label is here, as
csrc/include/gflv2/focal.hpp has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.class_maps import (
    LOGITS,
    MOST_IN_GRADIENT,
    SMALLEST,
    as_levels,
    cross_entropy,
    limited_exp,
    load_labels,
    load_quality,
    modulation,
    modulation_gradient,
    part_of,
    score_of,
    shape_of,
    sum_losses,
    write_gradients,
)
from gflv2.kernels.launching import kernel
from gflv2.kernels.levels import cells_of, extent_of, find_block, has_pairs, level_arguments, open_map, open_pairs
from gflv2.kernels.logarithm import minus_log
from gflv2.kernels.row_losses import launch_gradients, launch_losses, reduce_rows, upstream_of_rows
from gflv2.ops.reduction import Reduction

SIGMOID_FOCAL = tl.constexpr(0)
VARIFOCAL = tl.constexpr(1)
MATCHABILITY_AWARE = tl.constexpr(2)
IOU_AWARE_BCE = tl.constexpr(3)
_KINDS = {"sigmoid_focal": 0, "varifocal": 1, "matchability_aware": 2, "iou_aware_bce": 3}
LEAST_TARGET = tl.constexpr(0.01)  # of iou_aware_bce


@triton.jit
def _power(y, exponent, further):
    """y^exponent·exp(−further) for 0 ≤ y ≤ 1."""
    own = exponent * minus_log(tl.maximum(y, SMALLEST), 1.0 - y)
    own = tl.where(y <= 0.0, tl.where(exponent > 0.0, float("inf"), 0.0), own)
    found = own + further
    return tl.where(found == float("inf"), 0.0, limited_exp(-found)) + (y - y)  # y − y: a NaN stays one


@triton.jit
def _target(y, gain, alpha, gamma, KIND: tl.constexpr):
    """What the cross-entropy at a label compares σ with."""
    if KIND == VARIFOCAL:
        found = y
    elif KIND == MATCHABILITY_AWARE:
        found = _power(y, gamma, 0.0)
    else:
        found = _power(y, 1.0 - alpha, part_of(alpha, gain))
        found = tl.where(found < LEAST_TARGET, LEAST_TARGET, found)
    return found


@triton.jit
def _label_loss(value, quality, y, alpha, gamma, KIND: tl.constexpr, WEIGHTED: tl.constexpr, HALVES: tl.constexpr):
    score, loss, gain, rest, _, _ = score_of(value, quality, LOGITS)
    if KIND == SIGMOID_FOCAL:
        found = alpha * (gain * modulation(rest, gamma, HALVES))
    else:
        found = cross_entropy(_target(y, gain, alpha, gamma, KIND), gain, loss) + (score - score)  # a NaN stays one
        if WEIGHTED:
            found = part_of(y, found)
    return found


@triton.jit
def _label_gradient(value, quality, y, alpha, gamma, KIND: tl.constexpr, WEIGHTED: tl.constexpr, HALVES: tl.constexpr):
    score, loss, gain, rest, _, _ = score_of(value, quality, LOGITS)
    if KIND == SIGMOID_FOCAL:
        factor = modulation(rest, gamma, HALVES)
        through = tl.where(gain > MOST_IN_GRADIENT, MOST_IN_GRADIENT, gain)
        through *= modulation_gradient(rest, factor, gamma, HALVES)
        found = -alpha * (through * (score * rest) + factor * rest)
    else:
        target = _target(y, gain, alpha, gamma, KIND)
        found = score * (1.0 - target) - target * rest
        if WEIGHTED:
            found = y * found
    return found


@triton.jit
def _load_at_label(values, scores, own, rows):
    """The logit and the score of each point's label, and which points have one."""
    hit = own >= 0
    value = tl.load(values.pointer + (values.offsets + own * values.bin_stride), mask=hit, other=0.0).to(tl.float32)
    y = 1.0
    if scores is not None:
        y = tl.load(scores + rows, mask=hit, other=0.0)
    return hit, value, y


@kernel
def focal_forward_kernel(
    out,  # (B, A) or (N,) float32, contiguous, unless partials
    partials,  # (programs,) float32: the total is wanted; or None
    weight,  # (B, A) or (N,) float32, contiguous, or None
    values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7,  # (B, C, H_l, W_l) or (N, 1, C)
    levels,  # their table, see levels.level_arguments
    labels,  # (B, A) or (N,) int64, contiguous
    scores,  # (B, A) or (N,) float32, contiguous, or None: 1
    alpha: tl.float32, negative: tl.float32, gamma: tl.float32,
    blocks: tl.int32,  # programs an image
    total: tl.int64,  # A
    classes: tl.int32,
    KIND: tl.constexpr,
    WEIGHTED: tl.constexpr,  # is the score of a label its weight?
    HALVES: tl.constexpr,  # twice γ where it is 2 or 1.5, else 0
    AXIS: tl.constexpr,  # of the classes in the tile: 0 with the points last (NCHW), 1 with the classes last
    TOUCHING: tl.constexpr,  # neighbours in the tile's last dimension are neighbours in memory
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7)
    values = open_map(every, levels, block, cells, AXIS, TOUCHING)
    point = load_quality(None, rows, live, LOGITS)
    own = load_labels(labels, rows, live, classes)

    # 2. The negatives. Neighbouring points are read in pairs where memory allows it.
    if has_pairs(every, levels, (None,), None, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        losses = sum_losses(pairs, point, scores, own, rows, 0, 0, exist, classes, gamma, LOGITS, HALVES, AXIS, TILE)
    else:
        losses = sum_losses(values, point, scores, own, rows, 0, 0, live, classes, gamma, LOGITS, HALVES, AXIS, TILE)
    losses *= negative

    # 3. The labels.
    hit, value, y = _load_at_label(values, scores, own, rows)
    losses += tl.where(hit, _label_loss(value, point, y, alpha, gamma, KIND, WEIGHTED, HALVES), 0.0)
    reduce_rows(losses, weight, out, partials, rows, live)


@kernel
def focal_backward_kernel(
    upstream,  # of the result: (B, A) or (N,) float32, contiguous; () with TOTAL
    weight,  # as in forward
    factor,  # () float32: one more divisor of the total, or None
    divisor: tl.float32,
    values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7, levels,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7, grad_levels,  # shaped as the values
    labels, scores,  # as in forward
    alpha: tl.float32, negative: tl.float32, gamma: tl.float32,
    blocks: tl.int32, total: tl.int64, classes: tl.int32,
    TOTAL: tl.constexpr, KIND: tl.constexpr, WEIGHTED: tl.constexpr, DETACHED: tl.constexpr, HALVES: tl.constexpr,
    AXIS: tl.constexpr, TOUCHING: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7)
    every_grad = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    values = open_map(every, levels, block, cells, AXIS, TOUCHING)
    given = upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL)
    point = load_quality(None, rows, live, LOGITS)

    # 2. The labels.
    own = load_labels(labels, rows, live, classes)
    hit, value, y = _load_at_label(values, scores, own, rows)
    of_label = _label_gradient(value, point, y, alpha, gamma, KIND, WEIGHTED, HALVES) * given
    given *= negative

    # 3. The others, and what the labels' have become. Neighbouring points are read and written in pairs where memory
    #    allows it.
    if has_pairs(every, levels, every_grad, grad_levels, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        grad_pairs, _ = open_pairs(every_grad, grad_levels, block, cells)
        write_gradients(
            pairs, grad_pairs, point, given, of_label, scores, own, rows, 0, 0, exist, classes, gamma,
            True, LOGITS, HALVES, DETACHED, AXIS, TILE,
        )  # fmt: skip
    else:
        grad = open_map(every_grad, grad_levels, block, cells, AXIS, TOUCHING)
        write_gradients(
            values, grad, point, given, of_label, scores, own, rows, 0, 0, live, classes, gamma,
            True, LOGITS, HALVES, DETACHED, AXIS, TILE,
        )  # fmt: skip


def focal_forward(
    logits: Sequence[Tensor],
    labels: Tensor,
    scores: Tensor | None,
    kind: str,
    alpha: float,
    negative: float,
    gamma: float,
    iou_weighted: bool,
    detach: bool,
    reduction: Reduction,
    out: Tensor,
) -> None:
    """Write the losses of the rows, or their total, into ``out``, float32 contiguous.

    Args:
        logits: L levels (B, C, H, W), or [rows (N, C)]; float32, float16 or bfloat16, any strides.
        labels: (B, A) or (N,) int64 contiguous.
        scores: (B, A) or (N,) float32 contiguous, or None: 1.
        detach: without meaning here.
        reduction: of which a mean has become a sum.
    """
    levels = as_levels(logits)
    shape = _shape(levels, levels, kind, gamma, iou_weighted)
    extent = extent_of(levels, shape["BLOCK"])
    sizes = (extent.blocks, extent.points, logits[0].shape[1])
    arguments = (*level_arguments(levels), labels, scores, alpha, negative, gamma, *sizes)
    launch_losses(focal_forward_kernel, extent.programs, reduction, out, arguments, shape)


def focal_backward(
    grad: Tensor,
    logits: Sequence[Tensor],
    labels: Tensor,
    scores: Tensor | None,
    kind: str,
    alpha: float,
    negative: float,
    gamma: float,
    iou_weighted: bool,
    detach: bool,
    reduction: Reduction,
    grad_logits: Sequence[Tensor],
) -> None:
    """Write the gradients, where they are wanted.

    Args:
        grad: upstream gradient, shaped as forward's output, float32 contiguous. The other inputs as in forward.
        detach: is the weight of a negative a constant?
        grad_logits: tensors shaped as ``logits``, in their dtype, any strides; empty: not wanted.
    """
    if not grad_logits:
        return
    levels, gradients = as_levels(logits), as_levels(grad_logits)
    shape = _shape(levels, [*levels, *gradients], kind, gamma, iou_weighted) | {"DETACHED": detach}
    extent = extent_of(levels, shape["BLOCK"])
    sizes = (extent.blocks, extent.points, logits[0].shape[1])
    targets = (labels, scores, alpha, negative, gamma)
    arguments = (*level_arguments(levels), *level_arguments(gradients), *targets, *sizes)
    launch_gradients(focal_backward_kernel, extent.programs, reduction, grad, arguments, shape)


def _shape(
    levels: Sequence[Tensor], touched: Sequence[Tensor], kind: str, gamma: float, iou_weighted: bool
) -> dict[str, Any]:
    halves = {2.0: 4, 1.5: 3}.get(gamma, 0)
    weighted = kind == "varifocal" and iou_weighted
    return {"KIND": _KINDS[kind], "WEIGHTED": weighted, **shape_of(levels, touched, halves)}
