"""Whether an exported file gives what PyTorch gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """How far a file may be off.

    Attributes:
        boxes: pixels for each 8 pixels of stride, since a distance is bins times the stride.
        scores: absolute. logits: relative to the largest of them.
    """

    boxes: float
    scores: float
    logits: float


# float32: another order of additions. float16: 11 bits a value. Measured on random images: 0.18
# pixels and 0.002 in score of a trained gflv2_lite0, 0.54 and 0.001 of an R50 with random weights.
_FLOAT32 = Tolerance(2e-3, 1e-4, 1e-4)
TOLERANCES = {"32": _FLOAT32, "16": Tolerance(0.5, 0.02, 0.02), "int8": _FLOAT32}  # int8: before it is quantised


class Difference(NamedTuple):
    """The largest difference of what was compared: boxes in pixels and scores, or logits; and what is not allowed."""

    boxes: float
    scores: float
    complaint: str | None = None


def compare_candidates(
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    rows: Sequence[int],
    kept: int,
    strides: Sequence[float],
    tolerance: Tolerance,
) -> Difference:
    """Boxes (B, N, 4) and scores (B, N, C) of PyTorch and of a file, as sets.

    The order of rows says little: of two points whose scores are the same up to rounding, either may come first, and at
    the end of a level's top-k either may be the one that is left out. So each row of PyTorch needs one of the file that
    is close to it, but for those at that end.

    Args:
        rows: points of each level; kept: how many of them at most are among the N.
    """
    worst_box = worst_score = 0.0
    start = 0
    for size, stride in zip(rows, strides, strict=True):
        count = min(size, kept)
        near = tolerance.boxes * stride / 8
        for image in range(len(expected[0])):
            boxes, scores = (value[image, start : start + count] for value in expected)
            distance, row = closest(boxes, scores, found[0][image], found[1][image], near, tolerance.scores)
            best = scores.amax(1)
            cut = float(best[-1]) + tolerance.scores if size > kept else -1.0
            wrong = (distance > 1) & (best > cut)
            if wrong.any():
                text = f"{int(wrong.sum())} of {count} boxes at stride {stride:g} have no equal within {near:g} pixels"
                return Difference(worst_box, worst_score, f"{text} and {tolerance.scores:g} in score")
            same = distance <= 1
            worst_box = max(worst_box, _largest(boxes[same] - found[0][image][row[same]]))
            worst_score = max(worst_score, _largest(scores[same] - found[1][image][row[same]]))
        start += count
    return Difference(worst_box, worst_score)


def closest(
    boxes: Tensor, scores: Tensor, other_boxes: Tensor, other_scores: Tensor, near: float, score: float
) -> tuple[Tensor, Tensor]:
    """For each row the nearest other one: distance (≤ 1: within both tolerances) and its index."""
    mine = torch.cat([boxes / near, scores / score], dim=1)
    others = torch.cat([other_boxes / near, other_scores / score], dim=1)
    parts = [torch.cdist(part, others, p=torch.inf).min(1) for part in mine.split(256)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def compare_logits(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: Tolerance) -> Difference:
    """Logits of all levels, one by one."""
    worst = 0.0
    for mine, other in zip(expected, found, strict=True):
        if mine.shape != other.shape:
            return Difference(worst, worst, f"logits of shape {tuple(other.shape)}, expected {tuple(mine.shape)}")
        error, limit = _largest(mine - other), tolerance.logits * max(_largest(mine), 1.0)
        if not error <= limit:
            return Difference(error, error, f"logits are off by {error:.3g}, allowed {limit:.3g}")
        worst = max(worst, error)
    return Difference(worst, worst)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
