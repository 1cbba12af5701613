"""Integral: from the distribution of each side to a distance, and to a box (arXiv 2006.04388, equation 5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gflv2.ops.reference.boxes import distances_to_boxes, level_shapes_of, points_of_levels, strides_of_points
from gflv2.ops.reference.rows import box_rows, project


def integral(
    box_logits: Sequence[Tensor] | Tensor,
    projection: Tensor | None = None,
    *,
    scales: Tensor | None = None,
    strides: Sequence[float] | Tensor | None = None,
    points: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """d = Σ_b softmax(scale · z)_b · projection_b for each side; with strides the box (x − l, y − t, x + r, y + b).

    Args and result: as `gflv2.ops.integral`.
    """
    distances = project(box_rows(box_logits, scales).softmax(-1), projection)
    if strides is None:
        return distances
    if isinstance(box_logits, Tensor):
        points, stride = points.to(distances.dtype), strides.to(distances.dtype)
    else:
        shapes, kind = level_shapes_of(box_logits), {"device": distances.device, "dtype": distances.dtype}
        points = points_of_levels(shapes, strides, offset=offset, **kind)
        stride = strides_of_points(shapes, strides, **kind)
    return distances_to_boxes(points, distances * stride[:, None])
