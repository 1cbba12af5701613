"""``gfl_targets``, ``normalisers`` and ``gfl_loss``: the training head in three steps.

    targets = gfl_targets(class_logits, box_logits, assignment, boxes, …)   # IoU targets, weights, their sums
    norms = normalisers(targets.sums)                                       # one all-reduce of two numbers
    losses = gfl_loss(class_logits, box_logits, targets, norms, …)

Losses: arXiv 2006.04388 (QFL equation 5, DFL equation 6), joint score: arXiv 2011.12885 (equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.atss import check_boxes, check_padded_sizes
from gflv2.ops.checks import bad_type, bad_value, check_tensor, values_are_checked
from gflv2.ops.dgqp import Predictor, check_predictor
from gflv2.ops.levels import BoxLogits, check_levels, check_scales, check_strides, read_box_logits
from gflv2.ops.reference import gfl_loss as reference
from gflv2.ops.reference.atss import Assignment
from gflv2.ops.reference.gfl_loss import GFLLosses, GFLTargets

__all__ = ["GFLLosses", "GFLTargets", "gfl_loss", "gfl_targets", "normalisers"]


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
        GFLTargets, float32 (float64 for float64 box logits), without gradients.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call, box = check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)
    batch, points, _ = box.result_shape(0)
    if not isinstance(assignment, Assignment):
        bad_type("assignment", "a gflv2.ops.Assignment, as atss returns it", assignment)
    for name in ("index", "labels"):
        values = getattr(assignment, name)
        check_tensor(values, f"assignment.{name}", shape=(batch, points), dtypes=(torch.int64,), device=box.device)
    check_tensor(assignment.iou, "assignment.iou", shape=(batch, points), device=box.device)
    images, device = check_boxes(boxes, counts)
    if images != batch or device != box.device:
        bad_value("boxes", f"boxes of {batch} images on {box.device} like the logits", boxes)
    check_padded_sizes(padded_sizes, batch)
    backends.select("gfl_targets", call)
    return reference.gfl_targets(
        class_logits,
        box_logits,
        assignment,
        boxes,
        strides=[float(stride) for stride in strides],
        scales=scales,
        projection=projection,
        predictor=predictor,
        quality_logits=quality_logits,
        counts=counts,
        offset=offset,
        padded_sizes=padded_sizes,
    )


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
    if not weight_floor > 0:
        bad_value("weight_floor", "a positive number", weight_floor)
    mean = sums.detach().clone()
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(mean)
        mean = mean / distributed.get_world_size()
    return torch.stack([mean[0].clamp(min=1.0), mean[1].clamp(min=weight_floor)])


def gfl_loss(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    targets: GFLTargets,
    normalisers: Tensor,
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    beta: float = 2.0,
    loss_weights: tuple[float, float, float] = (1.0, 2.0, 0.25),
    offset: float = 0.0,
) -> GFLLosses:
    """The three losses of a batch, with y, w, N_pos and W of the steps before.

    * qfl  = Σ over points and classes of BCE(J, y)·|y − J|^β / N_pos, times label weight; y is 0 but at the box's
      class;
    * giou = Σ w·(1 − GIoU) / W, boxes in units of the stride, the target box as it is;
    * dfl  = Σ w·DFL / W, averaged over the sides, target distances clamped to [0, R − 1 − 0.1] bins.

    Args:
        class_logits, box_logits, strides, scales, predictor, quality_logits, offset: as `gfl_targets`.
        targets: of `gfl_targets`.
        normalisers: (2,) tensor [N_pos, W], of `normalisers`.
        projection: as `gfl_targets`, but uniform: DFL needs equal steps (checked under ``GFLV2_CHECK=1``).
        beta: exponent β ≥ 0 of the Quality Focal Loss.
        loss_weights: factors of the three losses.

    Returns:
        GFLLosses(qfl, giou, dfl), 0-d, float32 (float64 for float64 box logits), each multiplied by its factor.
        Differentiable in the logits, scales, predictor tensors, quality logits and (through the boxes) the
        projection. Without positive points the box losses are exactly 0, with gradients of 0.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call, box = check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)
    batch, points, _ = box.result_shape(0)
    if not isinstance(targets, GFLTargets):
        bad_type("targets", "a gflv2.ops.GFLTargets, as gfl_targets returns it", targets)
    for name in ("index", "labels", "scores", "weights", "label_weights"):
        dtypes = (torch.int64,) if name in ("index", "labels") else (torch.float32, torch.float64)
        check_tensor(getattr(targets, name), f"targets.{name}", shape=(batch, points), dtypes=dtypes, device=box.device)
    check_tensor(targets.boxes, "targets.boxes", shape=(batch, points, 4), device=box.device)
    check_tensor(targets.sums, "targets.sums", shape=(2,), device=box.device)
    check_tensor(normalisers, "normalisers", shape=(2,), device=box.device)
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        bad_type("beta", "a number", beta)
    if not (0 <= beta < math.inf):
        bad_value("beta", "a finite number ≥ 0", beta)
    if len(loss_weights) != 3:
        bad_value("loss_weights", "three numbers: QFL, GIoU, DFL", loss_weights)
    if projection is not None and values_are_checked():
        steps = projection.diff()
        if not torch.allclose(steps, steps[:1], rtol=1e-4):
            bad_value(
                "projection", "equal steps between the bins: DFL is defined on a uniform grid", projection.tolist()
            )
    backends.select("gfl_loss", call)
    return reference.gfl_loss(
        class_logits,
        box_logits,
        targets,
        normalisers,
        strides=[float(stride) for stride in strides],
        scales=scales,
        projection=projection,
        predictor=predictor,
        quality_logits=quality_logits,
        beta=float(beta),
        loss_weights=loss_weights,
        offset=offset,
    )


def check_head(
    class_logits: Any, box_logits: Any, strides: Any, scales: Any, projection: Any, predictor: Any, quality_logits: Any
) -> tuple[backends.Call, BoxLogits]:
    """The arguments that the training and the inference head share."""
    if isinstance(box_logits, Tensor):
        bad_type("box_logits", "a list of level tensors (B, 4·R, H, W)", box_logits)
    box = read_box_logits(box_logits)
    check_levels(class_logits, "class_logits", like=box.tensors)
    check_strides(strides, len(box.tensors))
    check_scales(scales, box)
    if projection is not None:
        check_tensor(projection, "projection", shape=(box.bins,), device=box.device)
    if predictor is not None:
        check_predictor(predictor, box)
        if quality_logits is not None:
            bad_value("quality_logits", "None with a predictor, which computes them", quality_logits)
    elif quality_logits is not None:
        check_tensor(quality_logits, "quality_logits", shape=box.result_shape(0)[:2], device=box.device)
    facts = {
        "bins": box.bins,
        "classes": class_logits[0].shape[1],
        "class_dtype": class_logits[0].dtype,
        "topk": None if predictor is None else predictor.topk,
    }
    return backends.Call(box.device, box.dtype, facts), box


def _describe(
    class_logits: Any,
    box_logits: Any,
    *_: Any,
    strides: Any,
    scales: Any = None,
    projection: Any = None,
    predictor: Any = None,
    quality_logits: Any = None,
    **__: Any,
) -> backends.Call:
    return check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)[0]


backends.register("gfl_loss", {"reference": None}, _describe)
backends.register("gfl_targets", {"reference": None}, _describe)
