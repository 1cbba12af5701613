"""The native ``atss``, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.native.tensors import native


@native
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
