"""``qfl`` in Triton: Quality Focal Loss (2006.04388, equation 5) on a logit, on class × quality, or on a probability.

A program takes BLOCK points of one level of one image and goes through their classes, TILE at a time. Classes and
points form a tile; whichever of the two lies closer together in memory is its last dimension, so that neighbouring
threads read neighbouring elements in NCHW as well as in channels_last and in rows (N, C).

Nearly every element is a negative, which costs half of what another does: with labels the tiles hold negatives only,
and the elements of the labels follow, one a point. The arithmetic is that of csrc/include/gflv2/qfl.hpp: with
E = exp(−c) and q = 1 − σ(r), σ(c) = 1/(1 + E) and 1 − J = (E + q)/(1 + E), so that nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.launching import INTERPRETED, OPTIONS, kernel
from gflv2.kernels.levels import (
    bins_are_last,
    cells_of,
    extent_of,
    find_block,
    has_pairs,
    level_arguments,
    neighbours_touch,
    open_map,
    open_pairs,
)
from gflv2.kernels.logarithm import minus_log
from gflv2.kernels.row_losses import launch_gradients, launch_losses, reduce_rows, upstream_of_rows
from gflv2.ops.reduction import Reduction

# Points of a program of four warps, and the classes that it may take at a time, by AXIS. A thread holds eight elements,
# or four with the classes last, where it also holds the quality of each of its points: with twice as many it spilled.
_POINTS, _TILES = 128, {False: (8,), True: (32, 16, 8)}
_REGISTERS = (168, 128), (208, 176)  # the most of a thread; without and with a gradient of pairs, then for β = 2
_CELLS_INTERPRETED, _CLASSES_INTERPRETED = 512, 256

LOGITS = tl.constexpr(0)
JOINT = tl.constexpr(1)
PROBABILITIES = tl.constexpr(2)
_FORMS = {"logits": LOGITS.value, "class_logits": JOINT.value, "probabilities": PROBABILITIES.value}

# exp(−x) and exp(x) stay normal numbers up to here.
FAR = tl.constexpr(87.0)
# From here on σ is 1; above it logits are moved down.
LARGE = tl.constexpr(40.0)
# No infinite logit is moved by more than the largest number: ∞ − ∞ would be none.
LARGEST = tl.constexpr(3.4028234663852886e38)
# In a gradient the cross entropy is a factor of J or of 1 − J, which is 0 long before it is as large as this. The limit
# keeps ∞ away from that 0.
MOST_IN_GRADIENT = tl.constexpr(1024.0)
SMALLEST = tl.constexpr(2.0**-126)  # the smallest normal number, exactly: Triton would take a smaller one for a float64


@triton.jit
def _limited_exp(x):
    """exp(x) for |x| ≤ FAR, else its value there. A NaN is kept."""
    x = tl.where(x > FAR, FAR, x)
    return tl.exp(tl.where(x < -FAR, -FAR, x))


@triton.jit
def _beyond_far(x):
    """−x where x lies below −FAR: what −log σ(x) lacks there."""
    return tl.where(x < -FAR, -x - FAR, 0.0)


@triton.jit
def _limited_minus_log(value, complement):
    """min(−log(value), 100), also for 0 and for the numbers below the smallest normal one."""
    small = value < 1e-30
    found = minus_log(tl.where(small, value * 18446744073709551616.0, value), complement)
    return tl.minimum(found + tl.where(small, 44.36141955583650, 0.0), 100.0)


@triton.jit
def _modulation(d, beta, SQUARE: tl.constexpr):
    """|d|^β."""
    if SQUARE:
        found = d * d
    else:
        size = tl.maximum(tl.abs(d), SMALLEST)
        power = _limited_exp(-beta * minus_log(size, 1.0 - size)) + (d - d)  # d − d: a NaN stays one
        found = tl.where(d == 0.0, tl.where(beta > 0.0, 0.0, 1.0), power)
    return found


@triton.jit
def _modulation_gradient(d, factor, beta, SQUARE: tl.constexpr):
    """Its derivative, 0 at d = 0."""
    if SQUARE:
        found = d + d
    else:
        size = beta * factor / tl.maximum(tl.abs(d), SMALLEST)
        found = tl.where(d == 0.0, 0.0, tl.where(d < 0.0, -size, size))
    return found


class _Quality(NamedTuple):
    """What the classes of a point share."""

    r: Any
    score: Any  # σ(r)
    rest: Any  # 1 − σ(r)


@triton.jit
def _load_quality(quality, rows, live, FORM: tl.constexpr):
    """Of each point; without a quality σ(r) = 1."""
    logit = tl.where(live, 0.0, 0.0)
    score = logit + 1.0
    rest = logit
    if FORM == JOINT:
        logit = tl.load(quality + rows, mask=live, other=0.0)
        odds = _limited_exp(-logit)
        score = 1.0 / (1.0 + odds)
        rest = odds * score
    return _Quality(logit, score, rest)


@triton.jit
def _widened(quality, AXIS: tl.constexpr):
    """As a tile has it."""
    return _Quality(
        tl.expand_dims(quality.r, AXIS), tl.expand_dims(quality.score, AXIS), tl.expand_dims(quality.rest, AXIS)
    )


@triton.jit
def _score(value, quality, FORM: tl.constexpr):
    """J, −log(1 − J), −log J; then 1 − σ(c), 1 − σ(r), and 1/(1 − J), or 1/(J·(1 − J)) of probabilities."""
    if FORM == PROBABILITIES:
        # Logarithms limited to 100, the product to 1e-12, as in torch's own binary cross-entropy; outside [0, 1]: NaN.
        joint = value
        class_rest = 1.0 - value
        quality_rest = class_rest
        loss = tl.where(value <= 1.0, _limited_minus_log(class_rest, value), float("nan"))
        gain = tl.where(value >= 0.0, _limited_minus_log(value, class_rest), float("nan"))
        inverse = 1.0 / tl.maximum(value * class_rest, 1e-12)
    elif FORM == LOGITS:
        shift = tl.maximum(value - LARGE, 0.0)
        odds = _limited_exp(tl.where(value > LARGE, -LARGE, -value))
        joint = 1.0 / (1.0 + odds)
        class_rest = odds * joint
        quality_rest = class_rest
        loss = minus_log(class_rest, joint) + shift
        gain = minus_log(joint, class_rest) + _beyond_far(value)
        inverse = class_rest
    else:
        # Where J is so near 1 that 1 − J would leave the range of the numbers, both logits are moved down by the same:
        # 1 − J grows by a factor that is added back to its logarithm, and no ratio changes. σ(r) is 1 there.
        r = quality.r
        shift = tl.maximum(tl.minimum(r, value) - LARGE, 0.0)
        # Two infinite logits stay so, and their odds are equal.
        finite = tl.minimum(shift, LARGEST)
        quality_rest = tl.where(shift > 0.0, _limited_exp(finite - r), quality.rest)
        odds = _limited_exp(finite - value)
        whole = 1.0 + odds
        sigma = 1.0 / whole
        class_rest = odds * sigma
        joint = sigma * quality.score
        loss = minus_log((odds + quality_rest) * sigma, joint) + shift
        gain = minus_log(sigma, class_rest) + _beyond_far(value)
        gain += minus_log(quality.score, quality.rest) + _beyond_far(r)
        inverse = whole / (odds + quality_rest)
    return joint, loss, gain, class_rest, quality_rest, inverse


@triton.jit
def _part_of(share, amount):
    """share·amount; nothing for a share of 0, be the amount infinite."""
    return share * tl.where((share == 0.0) & (amount == float("inf")), 0.0, amount)


@triton.jit
def _cross_entropy(y, gain, loss):
    return _part_of(y, gain) + _part_of(1.0 - y, loss)


@triton.jit
def _loss(value, quality, y, beta, FORM: tl.constexpr, SQUARE: tl.constexpr, NEGATIVE: tl.constexpr):
    """BCE(J, y)·|J − y|^β. NEGATIVE: y is 0."""
    joint, loss, gain, class_rest, quality_rest, inverse = _score(value, quality, FORM)
    if NEGATIVE:
        found = loss * _modulation(joint, beta, SQUARE)
    else:
        bce = _cross_entropy(y, gain, loss)
        # Infinite also where y is so small that its power is 0.
        found = tl.where(bce == float("inf"), bce, bce * _modulation(joint - y, beta, SQUARE))
    return found


@triton.jit
def _gradients(value, quality, y, beta, FORM: tl.constexpr, SQUARE: tl.constexpr, NEGATIVE: tl.constexpr):
    """Its derivatives by the class logit, or the probability, and by the quality logit."""
    joint, loss, gain, class_rest, quality_rest, inverse = _score(value, quality, FORM)
    if NEGATIVE:
        difference = joint
    else:
        difference = joint - y
        loss = _cross_entropy(y, gain, loss)
    loss = tl.where(loss > MOST_IN_GRADIENT, MOST_IN_GRADIENT, loss)
    factor = _modulation(difference, beta, SQUARE)
    direct = factor * difference
    through = loss * _modulation_gradient(difference, factor, beta, SQUARE)
    if FORM == LOGITS:
        of_value = through * (joint * class_rest) + direct
        of_quality = of_value
    elif FORM == PROBABILITIES:
        of_value = direct * inverse + through
        of_quality = of_value
    else:
        t = direct * inverse + through * joint
        of_value = class_rest * t
        of_quality = quality_rest * t
    return of_value, of_quality


@triton.jit
def _load_labels(labels, rows, live, classes):
    """Labels of the points, −1 for background."""
    label = tl.load(labels + rows, mask=live, other=-1)
    return tl.where((label >= 0) & (label < classes), label, -1)


@triton.jit
def _load_tile(
    values, scores, own, rows, score_row, score_class, first, live, classes, AXIS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Classes from ``first`` on of each point: their numbers, which exist, their values and targets.

    With labels (``own``) the target is 0: that of a negative.
    """
    number = first + tl.expand_dims(tl.arange(0, TILE), 1 - AXIS)
    far = number.to(tl.int64)
    mask = (number < classes) & tl.expand_dims(live, AXIS)
    at = values.pointer + (tl.expand_dims(values.offsets, AXIS) + far * values.bin_stride)
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    target = 0.0
    if own is None:
        at_score = scores + (tl.expand_dims(rows * score_row, AXIS) + far * score_class)
        target = tl.load(at_score, mask=mask, other=0.0)
    return number, mask, value, target


@triton.jit
def _load_labelled(values, scores, own, rows):
    """The value and the target of each point's label, and which points have one."""
    hit = own >= 0
    value = tl.load(values.pointer + (values.offsets + own * values.bin_stride), mask=hit, other=0.0).to(tl.float32)
    return hit, value, tl.load(scores + rows, mask=hit, other=0.0)


@triton.jit
def _sum_losses(
    values, point, scores, own, rows, score_row, score_class, live, classes, beta,
    FORM: tl.constexpr, SQUARE: tl.constexpr, AXIS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The losses of each point's classes together, without that of its label."""
    shared = _widened(point, AXIS)
    sums = tl.expand_dims(tl.arange(0, TILE), 1 - AXIS) * tl.expand_dims(tl.where(live, 0.0, 0.0), AXIS)
    for first in range(0, classes, TILE):
        number, mask, value, target = _load_tile(
            values, scores, own, rows, score_row, score_class, first, live, classes, AXIS, TILE
        )
        if own is not None:
            mask = mask & (number != tl.expand_dims(own, AXIS))
        sums += tl.where(mask, _loss(value, shared, target, beta, FORM, SQUARE, own is not None), 0.0)
    return tl.sum(sums, axis=AXIS)


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
    SQUARE: tl.constexpr,  # β is 2
    AXIS: tl.constexpr,  # of the classes in the tile: 0 with the points last (NCHW), 1 with the classes last
    TOUCHING: tl.constexpr,  # neighbours in the tile's last dimension are neighbours in memory
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program, and what their classes share.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7)
    values = open_map(every, levels, block, cells, AXIS, TOUCHING)
    point = _load_quality(quality, rows, live, FORM)
    own = None
    if labels is not None:
        own = _load_labels(labels, rows, live, classes)

    # 2. All elements; with labels, those of the labels are left out. Neighbouring points are read in pairs where memory
    #    allows it.
    if has_pairs(every, levels, (None,), None, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        losses = _sum_losses(
            pairs, point, scores, own, rows, score_row, score_class, exist, classes, beta, FORM, SQUARE, AXIS, TILE
        )
    else:
        losses = _sum_losses(
            values, point, scores, own, rows, score_row, score_class, live, classes, beta, FORM, SQUARE, AXIS, TILE
        )

    # 3. Those of the labels.
    if labels is not None:
        hit, value, target = _load_labelled(values, scores, own, rows)
        losses += tl.where(hit, _loss(value, point, target, beta, FORM, SQUARE, False), 0.0)
    reduce_rows(losses, weight, out, partials, rows, live)


@triton.jit
def _write_gradients(
    values, grad, point, given, of_label, scores, own, rows, score_row, score_class, live, classes, beta,
    GRAD: tl.constexpr, FORM: tl.constexpr, SQUARE: tl.constexpr, AXIS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the classes, where wanted (GRAD), and sum those of the quality, without a label's.

    ``given``: upstream gradient of each point. ``of_label``: the gradient of its label's element, not yet times that.
    """
    shared = _widened(point, AXIS)
    sums = tl.expand_dims(tl.arange(0, TILE), 1 - AXIS) * tl.expand_dims(tl.where(live, 0.0, 0.0), AXIS)
    for first in range(0, classes, TILE):
        number, mask, value, target = _load_tile(
            values, scores, own, rows, score_row, score_class, first, live, classes, AXIS, TILE
        )
        of_value, of_quality = _gradients(value, shared, target, beta, FORM, SQUARE, own is not None)
        counted = mask
        if own is not None:
            # The label's element goes with the others: a store that leaves it out could not take pairs.
            labelled = number == tl.expand_dims(own, AXIS)
            of_value = tl.where(labelled, tl.expand_dims(of_label, AXIS), of_value)
            counted = mask & ~labelled
        if GRAD:
            to = grad.pointer + (tl.expand_dims(grad.offsets, AXIS) + number.to(tl.int64) * grad.bin_stride)
            found = of_value * tl.expand_dims(given, AXIS)
            tl.store(to, found.to(grad.pointer.dtype.element_ty), mask=mask)
        if FORM == JOINT:
            sums += tl.where(counted, of_quality, 0.0)
    return tl.sum(sums, axis=AXIS)


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
    TOTAL: tl.constexpr, FORM: tl.constexpr, SQUARE: tl.constexpr, AXIS: tl.constexpr, TOUCHING: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 1. The points of this program, and what their classes share.
    block = find_block(levels, blocks, BLOCK)
    cells, live, rows = cells_of(block, block.number, total, BLOCK)
    every = (values_0, values_1, values_2, values_3, values_4, values_5, values_6, values_7)
    every_grad = (grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    values = open_map(every, levels, block, cells, AXIS, TOUCHING)
    given = upstream_of_rows(upstream, weight, factor, divisor, rows, live, TOTAL)
    point = _load_quality(quality, rows, live, FORM)

    # 2. The elements of the labels.
    own, of_label = None, None
    if labels is not None:
        own = _load_labels(labels, rows, live, classes)
        hit, value, target = _load_labelled(values, scores, own, rows)
        of_label, of_quality = _gradients(value, point, target, beta, FORM, SQUARE, False)
        of_quality = tl.where(hit, of_quality, 0.0)

    # 3. The others, and what the labels' have become. Neighbouring points are read and written in pairs where memory
    #    allows it.
    if has_pairs(every, levels, every_grad, grad_levels, block, AXIS, TOUCHING):
        pairs, exist = open_pairs(every, levels, block, cells)
        grad_pairs = pairs
        if grad_0 is not None:
            grad_pairs, _ = open_pairs(every_grad, grad_levels, block, cells)
        total_of_quality = _write_gradients(
            pairs, grad_pairs, point, given, of_label, scores, own, rows, score_row, score_class, exist, classes, beta,
            grad_0 is not None, FORM, SQUARE, AXIS, TILE,
        )  # fmt: skip
    else:
        grad = values
        if grad_0 is not None:
            grad = open_map(every_grad, grad_levels, block, cells, AXIS, TOUCHING)
        total_of_quality = _write_gradients(
            values, grad, point, given, of_label, scores, own, rows, score_row, score_class, live, classes, beta,
            grad_0 is not None, FORM, SQUARE, AXIS, TILE,
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
    levels = _as_levels(values)
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
    levels, gradients = _as_levels(values), _as_levels(grad_values)
    shape = _shape(levels, [*levels, *gradients], form, beta)
    extent = extent_of(levels, shape["BLOCK"])
    targets = (quality, labels, scores, grad_quality, *_score_strides(labels, scores))
    sizes = (extent.blocks, extent.points, values[0].shape[1])
    arguments = (*level_arguments(levels), *level_arguments(gradients), *targets, beta, *sizes)
    launch_gradients(qfl_backward_kernel, extent.programs, reduction, grad, arguments, shape)


def _as_levels(values: Sequence[Tensor]) -> list[Tensor]:
    """Rows (N, C) as the table of levels knows them: (N, 1, C), one side."""
    return [value.unsqueeze(1) if value.dim() == 2 else value for value in values]


def _score_strides(labels: Tensor | None, scores: Tensor) -> tuple[int, ...]:
    return scores.stride() if labels is None else (0, 0)


def _shape(levels: Sequence[Tensor], touched: Sequence[Tensor], form: str, beta: float) -> dict[str, Any]:
    """Constants and options of the kernels: they depend on the form, β, the classes and the memory layout.

    Args:
        touched: every tensor that is read or written in tiles.
    """
    classes = levels[0].shape[-1 if levels[0].dim() == 3 else 1]
    classes_last = bins_are_last(levels)
    # Of some sizes of a tile the one that leaves the fewest places empty; the larger where two are equal.
    most = triton.next_power_of_2(classes)
    sizes = (_CLASSES_INTERPRETED,) if INTERPRETED else _TILES[classes_last]
    sizes = [min(size, most) for size in sizes]
    tile = min(sizes, key=lambda size: -(-classes // size) * size)
    pairs = not classes_last and levels[0].dtype.itemsize == 2
    return {
        "FORM": _FORMS[form],
        "SQUARE": int(beta == 2),
        "AXIS": int(classes_last),
        "TOUCHING": neighbours_touch(touched, classes_last),
        "TILE": tile,
        "BLOCK": _CELLS_INTERPRETED if INTERPRETED else (4 * _POINTS // max(tile, 8) if classes_last else _POINTS),
        **OPTIONS,
        # Explicit: without a limit ptxas chose fewer for some variants, and spilled. A power needs more than a square,
        # and so do the two ways of a gradient of 16 bits, by pairs and one by one (Triton 3.5 and 3.6).
        "maxnreg": _REGISTERS[pairs and len(touched) > len(levels)][beta == 2],
    }
