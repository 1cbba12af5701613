"""The native ``gfl_targets`` and the box losses of ``gfl_loss``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the logits are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops.native.dgqp import dgqp_backward as box_loss_backward  # noqa: F401
from gflv2.ops.native.loading import library
from gflv2.ops.native.tensors import DTYPES, addresses_of_images, describe, map_strides, place, pointer


def gfl_targets(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    index: Tensor,
    assigned: Tensor,
    boxes: Sequence[Tensor],
    valid: Sequence[int],
    strides: Sequence[float],
    scales: Tensor | None,
    projection: Tensor,
    quality: Tensor | None,
    offset: float,
    labels: Tensor,
    target_boxes: Tensor,
    scores: Tensor,
    weights: Tensor,
    label_weights: Tensor,
    sums: Tensor,
) -> None:
    """What every point should learn, written to the last six. All tensors lie on one device.

    Args:
        class_logits: L levels (B, C, H_l, W_l). box_logits: L levels (B, 4·R, H_l, W_l). Any strides.
        index, assigned: (B, A) int64, contiguous: box and class of every point, as `atss` gives them.
        boxes: B tensors (G_i, 4), or one (B, G, 4), S, contiguous.
        valid: rows and columns that count, image by image, level by level; none: all.
        scales: (L,) S or None. projection: (R,) S. quality: (B, A) S logits or None. Contiguous.
        labels: (B, A) int64. target_boxes: (B, A, 4). scores, weights, label_weights: (B, A). sums: (2,). All S.
    """
    module = library()
    device, where = place(box_logits[0])
    dtype, bins, batch, count, levels = describe(box_logits, ())
    class_levels: list[int] = []
    shapes: list[int] = []
    for level in class_logits:
        class_levels += (level.data_ptr(), level.shape[2], level.shape[3], *map_strides(level))
        shapes += (level.shape[2], level.shape[3])
    images: list[int] = []
    for image, (address, number) in enumerate(addresses_of_images(boxes, boxes[0].dim() == 3)):
        images += (address, number, *(valid[image * len(shapes) : (image + 1) * len(shapes)] if valid else shapes))
    workspace = None
    if device >= 0:
        size = module.gfl_targets_workspace(levels, count, batch)
        workspace = torch.empty(size, dtype=torch.uint8, device=index.device)
    results = (labels, target_boxes, scores, weights, label_weights, sums, workspace)
    module.gfl_targets(
        device,
        where,
        dtype,
        bins,
        batch,
        count,
        levels,
        list(strides),
        DTYPES[class_logits[0].dtype],
        class_logits[0].shape[1],
        class_levels,
        pointer(scales),
        projection.data_ptr(),
        pointer(quality),
        offset,
        index.data_ptr(),
        assigned.data_ptr(),
        images,
        list(map(pointer, results)),
    )


def box_loss_forward(
    box_logits: Sequence[Tensor],
    boxes: Tensor,
    weights: Tensor,
    normaliser: Tensor,
    strides: Sequence[float],
    scales: Tensor | None,
    projection: Tensor,
    offset: float,
    factors: tuple[float, float],
    sides: Tensor,
    losses: Tensor,
) -> None:
    """GIoU loss and DFL of a batch, written to ``losses``, and what their gradient needs, to ``sides``.

    Args:
        box_logits: L levels (B, 4·R, H_l, W_l), any strides.
        boxes: (B, A, 4) S in pixels, weights: (B, A) S, contiguous. Points with a weight of 0 do not count.
        normaliser: () S.
        factors: Σ weight·(1 − GIoU) and Σ weight·DFL, over points and sides, are multiplied by them and divided by the
            normaliser.
        sides: (B, A, 4, 2) S. losses: (2,) S. Contiguous.
    """
    module = library()
    device, where = place(box_logits[0])
    dtype, bins, batch, count, levels = describe(box_logits, ())
    workspace = None
    if device >= 0:
        size = module.box_loss_workspace(levels, count, batch)
        workspace = torch.empty(size, dtype=torch.uint8, device=weights.device)
    module.box_loss(
        device,
        where,
        dtype,
        bins,
        batch,
        count,
        levels,
        list(strides),
        pointer(scales),
        projection.data_ptr(),
        offset,
        boxes.data_ptr(),
        weights.data_ptr(),
        normaliser.data_ptr(),
        *factors,
        sides.data_ptr(),
        losses.data_ptr(),
        pointer(workspace),
    )
