"""``gfl_targets`` and ``normalisers``: the first two of the three steps of the training head.

targets = gfl_targets(class_logits, box_logits, assignment, boxes, …)   # IoU targets, weights, their sums
norms = normalisers(targets.sums)                                       # one all-reduce of two numbers
losses = gfl_loss(class_logits, box_logits, targets, norms, …)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.atss import as_list, check_boxes, check_padded_sizes, valid_cells
from gflv2.ops.checks import FLOATS, bad_type, bad_value, check_number, check_tensor, compute_dtype
from gflv2.ops.dgqp import Predictor, refuse_triton
from gflv2.ops.head import ROWS, check_rows, read_head, refuse_mixed
from gflv2.ops.levels import rows_of
from gflv2.ops.reference import gfl_loss as reference
from gflv2.ops.reference.atss import Assignment
from gflv2.ops.reference.boxes import level_shapes_of
from gflv2.ops.reference.gfl_loss import GFLTargets
from gflv2.ops.registration import Operation

__all__ = ["GFLTargets", "gfl_targets", "normalisers"]

_ASSIGNMENT = {"index": (torch.int64,), "labels": (torch.int64,), "iou": FLOATS}


def gfl_targets(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    assignment: Assignment,
    boxes: Sequence[Tensor] | Tensor,
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    counts: Tensor | None = None,
    offset: float = 0.0,
    padded_sizes: Sequence[tuple[float, float]] | None = None,
) -> GFLTargets:
    """What every point should learn: its box, the IoU of its prediction with that box (y), and its weight w = max J.

    Args:
        class_logits: L levels (B, C, H_l, W_l).
        box_logits: L levels (B, 4·R, H_l, W_l), channel = side·R + bin, before ``scales``.
        assignment: of `atss`, (B, A) each.
        boxes: B tensors (G_i, 4), (x1, y1, x2, y2) in pixels, or one padded tensor (B, G, 4) with ``counts``; those
            that `atss` was given.
        strides: one number a level, in pixels.
        scales: one factor of the box logits a level, (L,); None: 1.
        projection: the value of each bin in strides, (R,); None: 0, 1, …, R−1.
        predictor: gives the quality logits r from the distributions. Or
        quality_logits: r itself, (B, A). Neither: J = sigmoid(c).
        counts: as `atss`.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        padded_sizes: as `atss`: cells beyond have label weight 0. None: all cells count.

    Returns:
        GFLTargets, float32 (float64 for float64 box logits), without gradients. Its ``quality`` belongs to these
        logits: where `gfl_loss` is to see others, replace it with None.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    head = read_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits, offset)
    if not isinstance(assignment, Assignment):
        bad_type("assignment", "a gflv2.ops.Assignment, as atss returns it", assignment)
    check_rows(head, assignment, "assignment", _ASSIGNMENT)
    batch, device = check_boxes(boxes, counts)
    if batch != head.points[0] or device != head.box.device:
        bad_value("boxes", f"boxes of {head.points[0]} images on {head.box.device} like the logits", boxes)
    check_padded_sizes(padded_sizes, batch)
    backend = backends.select("gfl_targets", head.call())
    if backend == "reference":
        options = {**head.options(projection), "counts": counts, "padded_sizes": padded_sizes}
        return reference.gfl_targets(class_logits, box_logits, assignment, boxes, **options)
    quality = head.quality_logits(backend)
    tensors = (*head.rows(quality), assignment.index, assignment.labels, as_list(boxes))
    valid = valid_cells(level_shapes_of(head.box.tensors), head.strides, padded_sizes)
    found = _gfl_targets.constant(tensors, (valid, head.strides, head.offset, backend))
    return GFLTargets(assignment.index, *found, None if predictor is None else quality)


def normalisers(sums: Tensor, *, weight_floor: float = 1e-12) -> Tensor:
    """What the losses are divided by: N_pos = max(mean over ranks of sums[0], 1), W = max(mean over ranks of sums[1],
    floor).

    The only collective of the training head: one all-reduce of two numbers where torch.distributed is initialised.
    Every rank must call it, whatever its images hold.

    Args:
        sums: (2,), of `gfl_targets`.
        weight_floor: 1e-12; 1 as mmdet 3 has it, which shrinks the box losses early in training.

    Returns:
        (2,) tensor on the same device; ``sums`` is left as it is.

    Raises:
        TypeError, ValueError: not a tensor of shape (2,), or a floor that is not positive.
    """
    check_tensor(sums, "sums", shape=(2,))
    check_number(weight_floor, "weight_floor", above=0)
    mean = sums.detach()
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        mean = mean.clone()
        distributed.all_reduce(mean)
        mean = mean / distributed.get_world_size()
    return torch.stack([mean[0].clamp(min=1.0), mean[1].clamp(min=weight_floor)])


def _describe(*arguments: Any, **options: Any) -> backends.Call:
    return read_head(*arguments[:2], **options).call()


def _refuse_on_gpu(call: backends.Call) -> str | None:
    return refuse_mixed(call) or backends.refuse_double(call)


def _refuse_triton(call: backends.Call) -> str | None:
    return refuse_mixed(call) or refuse_triton(call)


def _new_results(class_logits, box_logits, *_: Any) -> tuple[Tensor, ...]:
    """Labels, boxes, scores, weights, label weights, sums."""
    first, shape = box_logits[0], rows_of(box_logits)
    dtype = compute_dtype(first.dtype)
    labels, boxes = first.new_empty(shape, dtype=torch.int64), first.new_empty((*shape, 4), dtype=dtype)
    scores = first.new_empty(shape, dtype=dtype)
    weights, label_weights = torch.empty_like(scores), torch.empty_like(scores)
    return labels, boxes, scores, weights, label_weights, first.new_empty(2, dtype=dtype)


class _Targets(Operation):
    def _fill_empty(self, results: Any, arguments: Sequence[Any]) -> None:
        # Each image counts as one positive point. (No tensor from the host's numbers: that copy would wait.)
        results[-1].zero_()[:1].fill_(arguments[0][0].shape[0])


# `valid`: rows and columns that count, image by image, level by level, or empty.
_gfl_targets = _Targets(
    "gfl_targets",
    describe=_describe,
    refusals={"cuda": _refuse_on_gpu, "triton": _refuse_triton, "cpu": refuse_mixed, "reference": None},
    tensors=f"{ROWS}, Tensor index, Tensor assigned, Tensor[] boxes",
    settings="SymInt[] valid, float[] strides, float offset",
    new_results=_new_results,
    results=("labels", "target_boxes", "scores", "weights", "label_weights", "sums"),
    returns="(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    small=("quality", "scales", "projection", "boxes"),
    indices=("index", "assigned"),
)
