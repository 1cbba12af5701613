"""The native ``decode``, called with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.native.tensors import native


@native
def decode(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    quality_logits: Tensor | None,
    projection: Tensor,
    scales: Tensor | None,
    image_sizes: Tensor | None,
    scale_factors: Tensor | None,
    strides: Sequence[float],
    pre_topk: int,
    score_thr: float,
    offset: float,
    boxes: Tensor,
    scores: Tensor,
    points: Tensor,
    counts: Tensor,
    distributions: Tensor | None,
) -> None:
    """The candidates of a batch, written to the last five. All tensors lie on one device.

    Args:
        class_logits, box_logits: 1 to 8 levels (B, C, H, W) and (B, 4·R, H, W); any strides; both float64, or neither.
        quality_logits: (B, A); None: J = sigmoid(c). projection: (R,). scales: (L,); None: 1.
        image_sizes, scale_factors: (B, 2), or None. These five are contiguous, in the dtype of the arithmetic.
        strides: L numbers in pixels. pre_topk, score_thr, offset: as `gflv2.ops.decode`.
        boxes, scores, distributions: (B, N, 4), (B, N, C), (B, N, 4, R) or None, in the dtype of the arithmetic.
        points, counts: (B, N) and (B,) int64. All contiguous, and N > 0.
    """
