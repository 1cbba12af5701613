"""``integral``: softmax over the bins of each side, its expectation, optionally the box (arXiv 2006.04388, eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.checks import bad_value, check_number, check_tensor, compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import BoxLogits, check_projection, check_scales, check_strides, read_box_logits
from gflv2.ops.reference import integral as reference

_ARGUMENTS = (
    "Tensor[] logits, Tensor projection, Tensor? scales, Tensor? points, Tensor? point_strides, float[] strides, "
    "float offset, str backend"
)
_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(f"integral({_ARGUMENTS}) -> Tensor")
_library.define(f"integral_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) -> Tensor[]")


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
    level_strides, point_strides, points = _check_decoding(box, strides, points)
    check_number(offset, "offset")
    backend = backends.select("integral", _call(box))
    if backend == "reference":
        return reference.integral(box_logits, projection, scales=scales, strides=strides, points=points, offset=offset)
    arguments = (projection, scales, points, point_strides, level_strides, float(offset), backend)
    tensors = (projection, scales, *box.tensors)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _Integral.apply(*arguments, *box.tensors)
    return torch.ops.gflv2.integral(box.tensors, *arguments)


def _call(box: BoxLogits) -> backends.Call:
    return backends.Call(box.device, box.dtype, {"bins": box.bins})


def _describe(box_logits: Any, *_: Any, **__: Any) -> backends.Call:
    return _call(read_box_logits(box_logits))


backends.register("integral", backends.EVERYWHERE, _describe)


def _check_decoding(
    box: BoxLogits, strides: list[float] | Tensor | None, points: Tensor | None
) -> tuple[list[float], Tensor | None, Tensor | None]:
    """Strides of the levels, strides of the rows, points of the rows; all empty when distances are wanted."""
    if not box.rows:
        if points is not None:
            bad_value("points", "None with levels (their points lie on the grid)", points)
        return ([] if strides is None else check_strides(strides, len(box.tensors))), None, None
    if (points is None) != (strides is None):
        bad_value(
            "strides" if strides is None else "points",
            "both strides (M,) and points (M, 2) with rows, or neither",
            None,
        )
    if points is None:
        return [], None, None
    count = box.tensors[0].shape[0]
    dtype = compute_dtype(box.dtype)
    check_tensor(points, "points", shape=(count, 2), device=box.device)
    check_tensor(strides, "strides", shape=(count,), device=box.device)
    return [], strides.to(dtype).contiguous(), points.to(dtype).contiguous()


class _Integral(torch.autograd.Function):
    """Levels come last and flat: a list given to ``apply`` would get no gradient, silently."""

    @staticmethod
    def forward(ctx: Any, projection, scales, points, point_strides, strides, offset, backend, *logits) -> Tensor:
        ctx.save_for_backward(projection, scales, points, point_strides, *logits)
        ctx.settings = (strides, offset, backend)
        return torch.ops.gflv2.integral(
            list(logits), projection, scales, points, point_strides, strides, offset, backend
        )

    @staticmethod
    @no_double_backward("integral")
    def backward(ctx: Any, grad: Tensor):
        projection, scales, points, point_strides, *logits = ctx.saved_tensors
        needs = [any(ctx.needs_input_grad[7:]), ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
        gradients = torch.ops.gflv2.integral_backward(
            grad, logits, projection, scales, points, point_strides, *ctx.settings, needs
        )
        grad_logits = gradients[: len(logits)] if needs[0] else [None] * len(logits)
        rest = gradients[len(logits) :] if needs[0] else gradients
        grad_projection = rest[0] if needs[1] else None
        grad_scales = rest[-1] if needs[2] else None
        return grad_projection, grad_scales, None, None, None, None, None, *grad_logits


def _new_output(logits: list[Tensor]) -> Tensor:
    rows = logits[0].dim() == 3
    dtype = compute_dtype(logits[0].dtype)
    return logits[0].new_empty(BoxLogits(logits, rows, 0).result_shape(4), dtype=dtype)


def _new_gradients(logits: list[Tensor], projection: Tensor, scales: Tensor | None, needs: list[bool]) -> list[Tensor]:
    gradients = [torch.empty_like(level) for level in logits] if needs[0] else []
    if needs[1]:
        gradients.append(torch.empty_like(projection))
    if needs[2]:
        gradients.append(torch.empty_like(scales))
    return gradients


def _forward(logits, projection, scales, points, point_strides, strides, offset, backend) -> Tensor:
    out = _new_output(logits)
    if out.numel():
        implementation("integral", backend).integral_forward(
            logits, projection, scales, points, point_strides, strides, offset, out
        )
    return out


def _backward(grad, logits, projection, scales, points, point_strides, strides, offset, backend, needs) -> list[Tensor]:
    gradients = _new_gradients(logits, projection, scales, needs)
    if not grad.numel():
        return [gradient.zero_() for gradient in gradients]
    grad = grad.contiguous()
    levels = gradients[: len(logits)] if needs[0] else []
    rest = gradients[len(levels) :]
    grad_projection = rest[0] if needs[1] else None
    grad_scales = rest[-1] if needs[2] else None
    implementation("integral", backend).integral_backward(
        grad, logits, projection, scales, points, point_strides, strides, offset, levels, grad_projection, grad_scales
    )
    return gradients


for _key in ("CPU", "CUDA"):
    _library.impl("integral", _forward, _key)
    _library.impl("integral_backward", _backward, _key)
no_vmap("integral", _library)


@torch.library.register_fake("gflv2::integral", lib=_library)
def _(logits, projection, scales, points, point_strides, strides, offset, backend) -> Tensor:
    return _new_output(logits)


@torch.library.register_fake("gflv2::integral_backward", lib=_library)
def _(grad, logits, projection, scales, points, point_strides, strides, offset, backend, needs) -> list[Tensor]:
    return _new_gradients(logits, projection, scales, needs)
