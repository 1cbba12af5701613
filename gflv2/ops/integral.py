"""``integral``: softmax over the bins of each side, its expectation, optionally the box (arXiv 2006.04388, eq. 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_value, check_number, check_tensor, compute_dtype
from gflv2.ops.levels import BoxLogits, check_projection, check_scales, check_strides, read_box_logits, rows_of
from gflv2.ops.reference import integral as reference
from gflv2.ops.registration import Operation, as_rows, like_map


def integral(
    box_logits: Tensor | list[Tensor],
    projection: Tensor | None = None,
    *,
    scales: Tensor | None = None,
    strides: list[float] | Tensor | None = None,
    points: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """Expected distance of each box side, d = Σ_b softmax(scale·z)_b · projection_b, or the box that they give.

    Args:
        box_logits: L levels (B, 4·R, H_l, W_l), channel = side·R + bin, sides left, top, right, bottom; or rows
            (M, 4, R). float32, float16, bfloat16 or float64, any strides.
        projection: the value of each bin, (R,); None: 0, 1, …, R−1. Need not be uniform; may need a gradient.
        scales: one factor a level, (L,) (rows: one factor); None: 1. The product is formed in float32.
        strides: with levels, L numbers in pixels: return boxes instead of distances. With rows, a tensor (M,), together
            with ``points``.
        points: with rows, the point of each row, (M, 2) in pixels.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).

    Returns:
        Distances in the unit of ``projection`` (strides), or boxes (x1, y1, x2, y2) in pixels: (B, A, 4) for levels
        with A = Σ H_l·W_l, level-major then row-major; (M, 4) for rows. float32 (float64 for float64 input).
        Differentiable in ``box_logits``, ``projection`` and ``scales``.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    box = read_box_logits(box_logits)
    projection = check_projection(projection, box)
    scales = check_scales(scales, box)
    level_strides, point_strides = _check_decoding(box, strides, points)
    check_number(offset, "offset")
    backend = backends.select("integral", _call(box))
    if backend == "reference":
        return reference.integral(box_logits, projection, scales=scales, strides=strides, points=points, offset=offset)
    tensors = (box.tensors, projection, scales, points, point_strides)
    return _integral(tensors, (level_strides, float(offset), backend))


def _call(box: BoxLogits) -> backends.Call:
    return backends.Call(box.device, box.dtype, {"bins": box.bins})


def _describe(box_logits: Any, *_: Any, **__: Any) -> backends.Call:
    return _call(read_box_logits(box_logits))


def _check_decoding(
    box: BoxLogits, strides: list[float] | Tensor | None, points: Tensor | None
) -> tuple[list[float], Tensor | None]:
    """Strides of the levels, strides of the rows; both empty when distances are wanted."""
    if not box.rows:
        if points is not None:
            bad_value("points", "None with levels (their points lie on the grid)", points)
        return ([] if strides is None else check_strides(strides, len(box.tensors))), None
    if (points is None) != (strides is None):
        bad_value(
            "strides" if strides is None else "points",
            "both strides (M,) and points (M, 2) with rows, or neither",
            None,
        )
    if points is None:
        return [], None
    count = box.tensors[0].shape[0]
    check_tensor(points, "points", shape=(count, 2), device=box.device)
    check_tensor(strides, "strides", shape=(count,), device=box.device)
    return [], strides


def _new_results(logits, *_: Any) -> Tensor:
    return logits[0].new_empty((*rows_of(logits), 4), dtype=compute_dtype(logits[0].dtype))


_integral = Operation(
    "integral",
    describe=_describe,
    tensors="Tensor[] logits, Tensor projection, Tensor? scales, Tensor? points, Tensor? point_strides",
    settings="float[] strides, float offset",
    new_results=_new_results,
    small=("projection", "scales", "points", "point_strides"),
    gradients={"logits": like_map, "projection": as_rows, "scales": as_rows},
)
