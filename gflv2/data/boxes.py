"""The rule that says which boxes count, the same for training and evaluation; and boxes of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

LEAST_SIDE = 1.0  # pixels, as in the authors' training
LARGEST = 1e9  # of any coordinate: products stay finite and exact enough

EMPTY = "boxes with a side of 0 or below, left out"
THIN = f"boxes narrower or lower than {LEAST_SIDE:g} px, left out"
OUTSIDE = "boxes outside of their image, left out"
CUT = "boxes that reach 1 px or more over their image's edge, cut there"


def usable_box(box: Sequence[float], size: tuple[int, int] | None) -> tuple[Sequence[float] | None, str | None]:
    """The part of a box inside its image, if it is at least ``LEAST_SIDE`` wide and high.

    Args:
        box: (x, y, width, height) in pixels, finite.
        size: (height, width) of the image; None: unknown, nothing is cut.

    Returns:
        The box (the same object where nothing is cut), or None; and what is to be counted: ``EMPTY``, ``THIN``,
        ``OUTSIDE``, ``CUT`` or None. An edge that is passed by less than 1 px is rounding, and not counted.
    """
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return None, EMPTY
    if w < LEAST_SIDE or h < LEAST_SIDE:
        return None, THIN
    if size is None:
        return box, None
    height, width = size
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return box, None
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x2 <= x1 or y2 <= y1:
        return None, OUTSIDE
    if x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE:
        return None, THIN
    cut = max(w - (x2 - x1), h - (y2 - y1)) >= 1
    return [x1, y1, x2 - x1, y2 - y1], CUT if cut else None


def is_number(value: Any) -> bool:
    """Whether this is a finite number within ±``LARGEST``; true and false are none."""
    if type(value) is float or type(value) is int:
        return -LARGEST <= value <= LARGEST  # also False for NaN
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def box_of_mask(segmentation: Any) -> list[float] | None:
    """(x, y, width, height) of a COCO segmentation, or None where it is not one or is empty.

    Polygons give the extent of their corners; a run-length mask that of its pixels.

    Args:
        segmentation: a list of polygons [x, y, x, y, …], or ``{"size": [h, w], "counts": runs or COCO's text}``.
    """
    if isinstance(segmentation, (list, tuple)):
        return _box_of_polygons(segmentation)
    if isinstance(segmentation, dict):
        return _box_of_runs(segmentation.get("size"), segmentation.get("counts"))
    return None


def _box_of_polygons(polygons: Sequence[Any]) -> list[float] | None:
    if not polygons or not all(isinstance(p, (list, tuple)) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        return None
    if not all(map(is_number, chain.from_iterable(polygons))):
        return None
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _box_of_runs(size: Any, counts: Any) -> list[float] | None:
    """Runs of background and mask in turn, column by column."""
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(s) is int and s > 0 for s in size):
        return None
    height, width = size
    if isinstance(counts, (str, bytes)):
        counts = _uncompressed(counts)
    if not isinstance(counts, (list, tuple)) or not all(type(n) is int and 0 <= n <= height * width for n in counts):
        return None
    if sum(counts) > height * width or height * width > LARGEST:
        return None
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    starts, ends = ends[0 : len(ends) - len(ends) % 2 : 2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return None
    first, last = starts // height, (ends - 1) // height
    # A run that goes on in the next column touches the last row and the first.
    over = last > first
    top = np.where(over, 0, starts % height).min()
    bottom = np.where(over, height - 1, (ends - 1) % height).max()
    return [float(first[0]), float(top), float(last[-1] - first[0] + 1), float(bottom - top + 1)]


def _uncompressed(text: str | bytes) -> list[int] | None:
    """COCO's text form of runs: groups of five bits from the lowest, and from the third run on differences to the run
    before the last."""
    text = text.encode("ascii", "replace") if isinstance(text, str) else text
    runs: list[int] = []
    value, shift = 0, 0
    for byte in text:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs if shift == 0 else None


def whole(value: Any, limit: int) -> int | None:
    """A whole number within ±``limit`` as an int, also where it is written 3.0; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        if not math.isfinite(value) or value != math.floor(value) or abs(value) > 2**53:
            return None
        value = int(value)
    return value if -limit <= value <= limit else None
