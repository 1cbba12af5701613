"""``atss``: Adaptive Training Sample Selection (arXiv 1912.02424) for a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_count,
    check_number,
    check_pairs,
    check_tensor,
    values_are_checked,
)
from gflv2.ops.levels import MAX_LEVELS, check_strides
from gflv2.ops.reduction import INTEGERS
from gflv2.ops.reference import atss as reference
from gflv2.ops.reference.atss import Assignment
from gflv2.ops.reference.boxes import pad_boxes
from gflv2.ops.registration import Operation

__all__ = ["Assignment", "atss"]

MAX_SIDE = 1 << 15  # cells a side of a level: the kernels name a cell by two 16-bit numbers
# The list of candidates lies in shared memory (cuda), or is a tile of that width (triton).
_MOST_CELLS = 2**31 - 1  # of a level; more candidates are all of them
MAX_TOPK = {"cuda": 32, "triton": 32}


def atss(
    boxes: Sequence[Tensor] | Tensor,
    labels: Sequence[Tensor] | Tensor,
    level_shapes: Sequence[tuple[int, int]] | None,
    strides: Sequence[float],
    *,
    topk: int = 9,
    padded_sizes: Sequence[tuple[float, float]] | None = None,
    ignore_boxes: Sequence[Tensor] | Tensor | None = None,
    ignore_iof_thr: float = 0.0,
    anchor_scale: float = 8.0,
    offset: float = 0.0,
    counts: Tensor | None = None,
    points: Sequence[Tensor] | None = None,
) -> Assignment:
    """Say for every point of the feature maps which box it learns, if any.

    1. On every level the min(``topk``, valid cells) points nearest to the centre of a box are its candidates: squared
       distance dx² + dy² in float32; of equal ones the lower flat index.
    2. Threshold of a box = mean + unbiased standard deviation of its candidates' IoUs, in float64 and rounded once to
       float32. A box with one candidate gets nothing.
    3. Positive: a candidate with IoU ≥ threshold whose point lies more than 0.01 px inside the box.
    4. A point claimed by several boxes goes to the highest IoU; of equal ones to the lower box index.

    The IoU is that of the box and a square anchor of side ``anchor_scale``·stride centred on the point.

    Args:
        boxes: B tensors (G_i, 4), (x1, y1, x2, y2) in pixels; or one padded tensor (B, G, 4) with ``counts``.
        labels: B tensors (G_i,), or (B, G); integers.
        level_shapes: (H_l, W_l) of each level; None with ``points``.
        strides: one number a level, in pixels.
        topk: candidates of a box on each level.
        padded_sizes: (height, width) in pixels of each image after its own padding: cells with an index of
            ceil(side / stride) or more are no candidates. None: all cells are valid.
        ignore_boxes: B tensors (K_i, 4) or one (B, K, 4), used where ``ignore_iof_thr`` > 0: points whose anchor lies
            in one of them by more than that share of its area get index −1 and are candidates only where nothing else
            is left on a level (then they can become positive). They have no effect in an image without boxes.
        ignore_iof_thr: that share; 0 turns ignore boxes off.
        anchor_scale: side of the anchor in strides.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        counts: (B,) integers, number of boxes in each row of padded boxes; None: all of them.
        points: L tensors (n_l, 2) of point positions in pixels instead of the grid.

    Returns:
        Assignment(index, iou, labels), each (B, A), level-major then row-major. Nothing is differentiable.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call = _describe(
        boxes,
        labels,
        level_shapes,
        strides,
        topk=topk,
        padded_sizes=padded_sizes,
        ignore_boxes=ignore_boxes,
        ignore_iof_thr=ignore_iof_thr,
        anchor_scale=anchor_scale,
        offset=offset,
        counts=counts,
        points=points,
    )
    backend = backends.select("atss", call)
    strides = [float(stride) for stride in strides]
    if values_are_checked():
        check_counts(counts, boxes)
    topk = int(topk)
    if backend == "reference":
        with torch.no_grad():
            return reference.atss(
                boxes,
                labels,
                level_shapes,
                strides,
                topk=topk,
                padded_sizes=padded_sizes,
                ignore_boxes=ignore_boxes,
                ignore_iof_thr=ignore_iof_thr,
                anchor_scale=anchor_scale,
                offset=offset,
                counts=counts,
                points=points,
            )
    ignoring = ignore_boxes is not None and ignore_iof_thr > 0
    shapes = [(1, len(level)) for level in points] if points is not None else level_shapes
    tensors = (
        as_list(boxes),
        as_list(labels),
        counts,
        as_list(ignore_boxes) if ignoring else [],
        as_list(points) if points is not None else [],
    )
    numbers = [size for shape in shapes for size in shape]
    settings = (numbers, valid_cells(shapes, strides, padded_sizes), strides, min(topk, _MOST_CELLS))
    return Assignment(
        *_atss.constant(tensors, (*settings, float(anchor_scale), float(offset), float(ignore_iof_thr), backend))
    )


def as_list(tensors: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    """B tensors, or one padded tensor alone."""
    return [tensors] if isinstance(tensors, Tensor) else tensors


def valid_cells(shapes: Sequence[tuple[int, int]], strides: list[float], padded_sizes: Any) -> list[int]:
    """Rows and columns of each level whose cells count, image by image; empty: all do."""
    if padded_sizes is None:
        return []
    cells = []
    for height, width in padded_sizes:
        for (rows, columns), stride in zip(shapes, strides, strict=True):
            cells += (min(rows, int(-(-height // stride))), min(columns, int(-(-width // stride))))
    return cells


def check_counts(counts: Tensor | None, boxes: Any) -> None:
    """Check the values of ``counts``, at the price of a host sync."""
    if counts is not None and not bool(((counts >= 0) & (counts <= boxes.shape[1])).all()):
        bad_value("counts", f"numbers from 0 to {boxes.shape[1]}", counts.tolist())


def check_boxes(boxes: Any, counts: Any = None, *, name: str = "boxes") -> tuple[int, torch.device]:
    """Check the boxes of a batch, ragged or padded, and return the number of images and the device."""
    if isinstance(boxes, Tensor):
        check_tensor(boxes, name, shape=(None, None, 4))
        if boxes.shape[0] == 0:
            bad_value(name, "at least one image", boxes)
        if counts is not None:
            check_tensor(counts, "counts", shape=(boxes.shape[0],), dtypes=INTEGERS, device=boxes.device)
        return boxes.shape[0], boxes.device
    if not isinstance(boxes, (list, tuple)):
        bad_type(name, "a list of B tensors (G, 4), or a tensor (B, G, 4)", boxes)
    if not boxes:
        bad_value(name, "at least one image", boxes)
    if counts is not None:
        bad_value("counts", f"None with {name} given as a list", counts)
    device = boxes[0].device if isinstance(boxes[0], Tensor) else None
    for index, image in enumerate(boxes):
        # A batch has many images: the name is formed only for an error.
        if not (
            isinstance(image, Tensor)
            and image.dtype in FLOATS
            and len(sizes := image.shape) == 2
            and sizes[1] == 4
            and image.device == device
        ):
            check_tensor(image, f"{name}[{index}]", shape=(None, 4), device=device)
    return len(boxes), device


def check_padded_sizes(padded_sizes: Any, batch: int) -> None:
    """``padded_sizes``: None, or one (height, width) an image, on the host."""
    if padded_sizes is None:
        return
    check_pairs(padded_sizes, "padded_sizes", f"a list of {batch} (height, width)", batch)


def check_labels(labels: Any, boxes: Any, device: torch.device, *, name: str = "labels", like: str = "boxes") -> None:
    """Check that labels are given as their boxes are, whose name is ``like``."""
    if isinstance(boxes, Tensor):
        check_tensor(labels, name, shape=boxes.shape[:2], dtypes=INTEGERS, device=device)
        return
    if isinstance(labels, Tensor) or not isinstance(labels, (list, tuple)) or len(labels) != len(boxes):
        bad_value(name, f"a list of {len(boxes)} tensors (G,) like {like}", labels)
    for index, (label, image) in enumerate(zip(labels, boxes, strict=True)):
        if not (
            isinstance(label, Tensor)
            and label.dtype in INTEGERS
            and len(sizes := label.shape) == 1
            and sizes[0] == image.shape[0]
            and label.device == device
        ):
            check_tensor(label, f"{name}[{index}]", shape=(image.shape[0],), dtypes=INTEGERS, device=device)


def check_assigned_values(labels: Any, boxes: Any, counts: Tensor | None, classes: int) -> None:
    """Check ``counts``, and that the labels of boxes are classes, at the price of a host sync.

    Padding is not looked at: boxes beyond ``counts``, and those with a NaN, which have no points.
    """
    check_counts(counts, boxes)
    padded, exists = pad_boxes(labels, counts)
    exists = exists & ~pad_boxes(boxes)[0].isnan().any(-1)
    if bool((exists & ((padded < 0) | (padded >= classes))).any()):
        bad_value("gt_labels", f"numbers from 0 to {classes - 1}", padded[exists].tolist())


def _check_shapes(level_shapes: Any, points: Any, padded_sizes: Any, device: torch.device) -> int:
    """The number of levels."""
    if points is not None:
        if isinstance(points, Tensor) or not isinstance(points, (list, tuple)) or not 1 <= len(points) <= MAX_LEVELS:
            bad_value("points", f"a list of 1 to {MAX_LEVELS} tensors (n, 2)", points)
        if padded_sizes is not None:
            bad_value("padded_sizes", "None with points: every point given is valid", padded_sizes)
        for index, level in enumerate(points):
            check_tensor(level, f"points[{index}]", shape=(None, 2), device=device)
        return len(points)
    if not isinstance(level_shapes, (list, tuple)) or not 1 <= len(level_shapes) <= MAX_LEVELS:
        bad_value("level_shapes", f"a list of 1 to {MAX_LEVELS} (H, W)", level_shapes)
    check_pairs(level_shapes, "level_shapes", "a list of (H, W)")
    if any(min(shape) < 0 for shape in level_shapes):
        bad_value("level_shapes", "a list of (H, W)", level_shapes)
    return len(level_shapes)


def _describe(
    boxes: Any,
    labels: Any,
    level_shapes: Any,
    strides: Any,
    *,
    topk: Any = 9,
    padded_sizes: Any = None,
    ignore_boxes: Any = None,
    ignore_iof_thr: Any = 0.0,
    anchor_scale: Any = 8.0,
    offset: Any = 0.0,
    counts: Any = None,
    points: Any = None,
) -> backends.Call:
    batch, device = check_boxes(boxes, counts)
    check_labels(labels, boxes, device)
    levels = _check_shapes(level_shapes, points, padded_sizes, device)
    check_strides(strides, levels)
    check_padded_sizes(padded_sizes, batch)
    if ignore_boxes is not None:
        images, where = check_boxes(ignore_boxes, name="ignore_boxes")
        if images != batch or where != device:
            bad_value("ignore_boxes", f"boxes of {batch} images on {device} like boxes", ignore_boxes)
    check_count(topk, "topk")
    check_number(anchor_scale, "anchor_scale", above=0)
    check_number(ignore_iof_thr, "ignore_iof_thr")
    check_number(offset, "offset")
    side = max(max(shape) for shape in level_shapes) if points is None else 0
    return backends.Call(device, torch.float32, {"grid": points is None, "levels": levels, "topk": topk, "side": side})


def _refusal(backend: str) -> Callable[[backends.Call], str | None]:
    def refuse(call: backends.Call) -> str | None:
        if call.facts["side"] > MAX_SIDE:
            return f"a level has more than {MAX_SIDE} cells a side"
        if call.facts["topk"] > MAX_TOPK.get(backend, call.facts["topk"]):
            return f"topk is more than {MAX_TOPK[backend]}"
        return None

    return refuse


def _new_results(boxes, labels, counts, ignore_boxes, points, shapes, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch = boxes[0].shape[0] if boxes[0].dim() == 3 else len(boxes)
    size = (batch, sum(height * width for height, width in zip(shapes[::2], shapes[1::2], strict=True)))
    index = boxes[0].new_empty(size, dtype=torch.int64)
    return index, boxes[0].new_empty(size, dtype=torch.float32), torch.empty_like(index)


# `shapes`: height and width of each level. `valid`: rows and columns that count, image by image, level by level, or
# empty.
_atss = Operation(
    "atss",
    describe=_describe,
    refusals={**{name: _refusal(name) for name in ("cuda", "triton", "cpu")}, "reference": None},
    tensors="Tensor[] boxes, Tensor[] labels, Tensor? counts, Tensor[] ignore_boxes, Tensor[] points",
    settings="SymInt[] shapes, SymInt[] valid, float[] strides, int topk, float anchor_scale, float offset, "
    "float ignore_iof_thr",
    new_results=_new_results,
    results=("index", "iou", "assigned_labels"),
    returns="(Tensor, Tensor, Tensor)",
    small=("boxes", "ignore_boxes", "points"),
    indices=("labels", "counts"),
    arithmetic=lambda _: torch.float32,
)
