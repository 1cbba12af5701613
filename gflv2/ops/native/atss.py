"""The native ``atss``, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops.native.loading import library
from gflv2.ops.native.tensors import addresses_of_images, place, pointer


def atss(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    counts: Tensor | None,
    ignore_boxes: Sequence[Tensor],
    points: Sequence[Tensor],
    shapes: Sequence[int],
    valid: Sequence[int],
    strides: Sequence[float],
    topk: int,
    anchor_scale: float,
    offset: float,
    ignore_iof_thr: float,
    index: Tensor,
    iou: Tensor,
    assigned_labels: Tensor,
) -> None:
    """The assignment of a batch, written to the last three. All tensors are contiguous and lie on one device.

    Args:
        boxes: B tensors (G_i, 4) float32, or one (B, G, 4), of which the first ``counts[i]`` of image i exist.
        labels: shaped alike, int64. counts: (B,) int64 or None.
        ignore_boxes: B tensors (K_i, 4) float32, or one (B, K, 4), or none.
        points: L tensors (n_l, 2) float32; none: the grid.
        shapes: height and width of each level (points: 1 and n). valid: rows and columns that count, image by image,
            level by level; none: all.
        index, iou, assigned_labels: (B, A) int64, float32, int64.
    """
    module = library()
    levels: list[int] = []
    for level in range(len(strides)):
        levels += (points[level].data_ptr() if points else 0, shapes[2 * level], shapes[2 * level + 1])
    images: list[int] = []
    batch = index.shape[0]
    limits = [0] * batch if counts is None else [counts.data_ptr() + 8 * image for image in range(batch)]
    padded = boxes[0].dim() == 3
    targets = zip(addresses_of_images(boxes, padded), addresses_of_images(labels, padded), strict=True)
    ignored = addresses_of_images(ignore_boxes, ignore_boxes[0].dim() == 3) if ignore_boxes else [(0, 0)] * batch
    for image, ((box, count), (label, _)) in enumerate(targets):
        ignore, ignore_count = ignored[image]
        images += (box, label, limits[image], ignore, count, ignore_count)
        images += valid[image * len(shapes) : (image + 1) * len(shapes)] if valid else shapes
    device, where = place(index)
    scratch = None
    if any(count for _, count in ignored):
        scratch = torch.empty(index.shape, dtype=torch.uint8, device=index.device)
    outputs = map(pointer, (index, iou, assigned_labels, scratch))
    module.atss(device, where, levels, list(strides), images, topk, anchor_scale, offset, ignore_iof_thr, *outputs)
