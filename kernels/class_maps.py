"""A loss of every class of every point in Triton: what ``qfl`` and ``focal`` share.

A program takes BLOCK points of one level of one image and goes through their classes, TILE at a time. Classes and
points form a tile; whichever of the two lies closer together in memory is its last dimension, so that neighbouring
threads read neighbouring elements in NCHW as well as in channels_last and in rows (N, C).

Nearly every element is a negative, which costs half of what another does: with labels the tiles hold negatives only,
and the elements of the labels follow, one a point. The arithmetic is that of csrc/include/gflv2/qfl.hpp: with
E = exp(−c) and q = 1 − σ(r), σ(c) = 1/(1 + E) and 1 − J = (E + q)/(1 + E), so that nothing is subtracted.

HALVES is twice the exponent where that is known when a kernel is compiled (4, 3), else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from gflv2.kernels.launching import INTERPRETED, OPTIONS
from gflv2.kernels.levels import bins_are_last, neighbours_touch
from gflv2.kernels.logarithm import minus_log

# Points of a program of four warps, and the classes that it may take at a time, by AXIS. A thread holds eight elements,
# or four with the classes last, where it also holds the quality of each of its points: with twice as many it spilled.
_POINTS, _TILES = 128, {False: (8,), True: (32, 16, 8)}
_REGISTERS = (168, 128), (208, 176)  # the most of a thread; without and with a gradient of pairs, then for β = 2
_CELLS_INTERPRETED, _CLASSES_INTERPRETED = 512, 256

LOGITS = tl.constexpr(0)
JOINT = tl.constexpr(1)
PROBABILITIES = tl.constexpr(2)

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
def limited_exp(x):
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
def modulation(d, beta, HALVES: tl.constexpr):
    """|d|^β."""
    if HALVES == 4:
        found = d * d
    elif HALVES == 3:
        found = tl.abs(d) * tl.sqrt(tl.abs(d))
    else:
        size = tl.maximum(tl.abs(d), SMALLEST)
        power = limited_exp(-beta * minus_log(size, 1.0 - size)) + (d - d)  # d − d: a NaN stays one
        found = tl.where(d == 0.0, tl.where(beta > 0.0, 0.0, 1.0), power)
    return found


@triton.jit
def modulation_gradient(d, factor, beta, HALVES: tl.constexpr):
    """Its derivative, 0 at d = 0."""
    if HALVES == 4:
        found = d + d
    elif HALVES == 3:
        size = 1.5 * tl.sqrt(tl.abs(d))
        found = tl.where(d < 0.0, -size, size)
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
def load_quality(quality, rows, live, FORM: tl.constexpr):
    """Of each point; without a quality σ(r) = 1."""
    logit = tl.where(live, 0.0, 0.0)
    score = logit + 1.0
    rest = logit
    if FORM == JOINT:
        logit = tl.load(quality + rows, mask=live, other=0.0)
        odds = limited_exp(-logit)
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
def score_of(value, quality, FORM: tl.constexpr):
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
        odds = limited_exp(tl.where(value > LARGE, -LARGE, -value))
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
        quality_rest = tl.where(shift > 0.0, limited_exp(finite - r), quality.rest)
        odds = limited_exp(finite - value)
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
def part_of(share, amount):
    """share·amount; nothing for a share of 0, be the amount infinite."""
    return share * tl.where((share == 0.0) & (amount == float("inf")), 0.0, amount)


@triton.jit
def cross_entropy(y, gain, loss):
    return part_of(y, gain) + part_of(1.0 - y, loss)


@triton.jit
def loss_of(value, quality, y, beta, FORM: tl.constexpr, HALVES: tl.constexpr, NEGATIVE: tl.constexpr):
    """BCE(J, y)·|J − y|^β. NEGATIVE: y is 0."""
    joint, loss, gain, class_rest, quality_rest, inverse = score_of(value, quality, FORM)
    if NEGATIVE:
        found = loss * modulation(joint, beta, HALVES)
    else:
        bce = cross_entropy(y, gain, loss)
        # Infinite also where y is so small that its power is 0.
        found = tl.where(bce == float("inf"), bce, bce * modulation(joint - y, beta, HALVES))
    return found


@triton.jit
def gradients_of(
    value, quality, y, beta, FORM: tl.constexpr, HALVES: tl.constexpr, NEGATIVE: tl.constexpr, DETACHED: tl.constexpr
):  # fmt: skip
    """Its derivatives by the class logit, or the probability, and by the quality logit.

    DETACHED: the power is a constant; only for LOGITS.
    """
    joint, loss, gain, class_rest, quality_rest, inverse = score_of(value, quality, FORM)
    if NEGATIVE:
        difference = joint
    else:
        difference = joint - y
        loss = cross_entropy(y, gain, loss)
    loss = tl.where(loss > MOST_IN_GRADIENT, MOST_IN_GRADIENT, loss)
    factor = modulation(difference, beta, HALVES)
    direct = factor * difference
    through = loss * modulation_gradient(difference, factor, beta, HALVES)
    if DETACHED:
        of_value = direct
        of_quality = of_value
    elif FORM == LOGITS:
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
def load_labels(labels, rows, live, classes):
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
def load_labelled(values, scores, own, rows):
    """The value and the target of each point's label, and which points have one."""
    hit = own >= 0
    value = tl.load(values.pointer + (values.offsets + own * values.bin_stride), mask=hit, other=0.0).to(tl.float32)
    return hit, value, tl.load(scores + rows, mask=hit, other=0.0)


@triton.jit
def sum_losses(
    values, point, scores, own, rows, score_row, score_class, live, classes, beta,
    FORM: tl.constexpr, HALVES: tl.constexpr, AXIS: tl.constexpr, TILE: tl.constexpr,
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
        sums += tl.where(mask, loss_of(value, shared, target, beta, FORM, HALVES, own is not None), 0.0)
    return tl.sum(sums, axis=AXIS)


@triton.jit
def write_gradients(
    values, grad, point, given, of_label, scores, own, rows, score_row, score_class, live, classes, beta,
    GRAD: tl.constexpr, FORM: tl.constexpr, HALVES: tl.constexpr, DETACHED: tl.constexpr, AXIS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the classes, where wanted (GRAD), and sum those of the quality, without a label's.

    ``given``: upstream gradient of each point's negatives, ``of_label``: the gradient of its label's element.
    """
    shared = _widened(point, AXIS)
    sums = tl.expand_dims(tl.arange(0, TILE), 1 - AXIS) * tl.expand_dims(tl.where(live, 0.0, 0.0), AXIS)
    for first in range(0, classes, TILE):
        number, mask, value, target = _load_tile(
            values, scores, own, rows, score_row, score_class, first, live, classes, AXIS, TILE
        )
        of_value, of_quality = gradients_of(value, shared, target, beta, FORM, HALVES, own is not None, DETACHED)
        counted = mask
        found = of_value * tl.expand_dims(given, AXIS)
        if own is not None:
            # The label's element goes with the others: a store that leaves it out could not take pairs.
            labelled = number == tl.expand_dims(own, AXIS)
            found = tl.where(labelled, tl.expand_dims(of_label, AXIS), found)
            counted = mask & ~labelled
        if GRAD:
            to = grad.pointer + (tl.expand_dims(grad.offsets, AXIS) + number.to(tl.int64) * grad.bin_stride)
            tl.store(to, found.to(grad.pointer.dtype.element_ty), mask=mask)
        if FORM == JOINT:
            sums += tl.where(counted, of_quality, 0.0)
    return tl.sum(sums, axis=AXIS)


def as_levels(values: Sequence[Tensor]) -> list[Tensor]:
    """Rows (N, C) as the table of levels knows them: (N, 1, C), one side."""
    return [value.unsqueeze(1) if value.dim() == 2 else value for value in values]


def shape_of(levels: Sequence[Tensor], touched: Sequence[Tensor], halves: int) -> dict[str, Any]:
    """Constants and options of the kernels: they depend on the exponent, the classes and the memory layout.

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
        "HALVES": halves,
        "AXIS": int(classes_last),
        "TOUCHING": neighbours_touch(touched, classes_last),
        "TILE": tile,
        "BLOCK": _CELLS_INTERPRETED if INTERPRETED else (4 * _POINTS // max(tile, 8) if classes_last else _POINTS),
        **OPTIONS,
        # Explicit: without a limit ptxas chose fewer for some variants, and spilled. A power needs more than a square,
        # and so do the two ways of a gradient of 16 bits, by pairs and one by one (Triton 3.5 and 3.6).
        "maxnreg": _REGISTERS[pairs and len(touched) > len(levels)][halves != 0],
    }
