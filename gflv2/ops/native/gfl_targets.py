"""The native ``gfl_targets``, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.native.tensors import native


@native
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

    S below is the dtype of the arithmetic: float32, or float64 where the logits are float64.

    Args:
        class_logits: L levels (B, C, H_l, W_l). box_logits: L levels (B, 4·R, H_l, W_l). Any strides.
        index, assigned: (B, A) int64, contiguous: box and class of every point, as `atss` gives them.
        boxes: B tensors (G_i, 4), or one (B, G, 4), S, contiguous.
        valid: rows and columns that count, image by image, level by level; none: all.
        scales: (L,) S or None. projection: (R,) S. quality: (B, A) S logits or None. Contiguous.
        labels: (B, A) int64. target_boxes: (B, A, 4). scores, weights, label_weights: (B, A). sums: (2,). All S.
    """
