"""Forward and backward pass of ``gfl_loss``: what its kernels compute together, and how torch knows it.

The class loss is that of `qfl`. The box losses have kernels of their own. Their backward pass writes the gradient of
the box logits once, with the part that flows through the statistics of `dgqp` in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops.box_losses import SavedBoxLoss
from gflv2.ops.checks import compute_dtype
from gflv2.ops.head import ROWS
from gflv2.ops.implementation import implementation
from gflv2.ops.qfl import OPERATION as QFL
from gflv2.ops.registration import as_rows, convert, flatten, register


class Rows(NamedTuple):
    """What both passes read, in the order of the registered operations."""

    class_logits: Sequence[Tensor]
    box_logits: Sequence[Tensor]
    quality: Tensor | None
    scales: Tensor | None
    projection: Tensor
    labels: Tensor
    scores: Tensor
    weights: Tensor
    label_weights: Tensor
    normalisers: Tensor  # N_pos and W


class Needs(NamedTuple):
    """Which gradients are needed."""

    class_logits: bool
    box_logits: bool
    predictor: bool
    scales: bool
    quality: bool  # for itself: no predictor has computed it

    @property
    def of_box_logits(self) -> bool:
        """The pass over the box logits is needed."""
        return self.box_logits or self.predictor or self.scales


class Gradients(NamedTuple):
    """Those that are not wanted are empty or None."""

    class_logits: list[Tensor]
    box_logits: list[Tensor]
    predictor: list[Tensor]
    scales: Tensor | None
    quality: Tensor | None


def split_gradients(gradients: Sequence[Tensor], count: int, needs: Sequence[bool]) -> Gradients:
    """Of a flat list, for ``count`` levels."""
    parts, first = [], 0
    for size, need in zip((count, count, 4, 1, 1), needs, strict=True):
        parts.append(list(gradients[first : first + size * need]))
        first += size * need
    return Gradients(*parts[:3], *(part[0] if part else None for part in parts[3:]))


def _new_results(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three losses, and what backward needs of the box losses (`SavedBoxLoss.sides`)."""
    weights, dtype = arguments[7], compute_dtype(arguments[1][0].dtype)
    qfl = weights.new_empty((), dtype=dtype)
    return qfl, torch.empty_like(qfl), torch.empty_like(qfl), weights.new_empty((*weights.shape, 4, 2), dtype=dtype)


def class_loss(rows: Rows, beta: float, loss_weights: Sequence[float]) -> list[Any]:
    """The arguments of `qfl` for Σ over points / N_pos, times its factor."""
    divisor = 1 / loss_weights[0] if loss_weights[0] else math.inf
    form = "logits" if rows.quality is None else "class_logits"
    # Of the normalisers `qfl` reads the first, N_pos.
    tensors = (rows.class_logits, rows.quality, rows.labels, rows.scores, rows.label_weights, rows.normalisers)
    return [*tensors, form, beta, divisor, "sum"]


def _factors(loss_weights: Sequence[float]) -> tuple[float, float]:
    """Of the two box losses; DFL is a mean over the sides."""
    return loss_weights[1], loss_weights[2] / 4


def losses_and_gradients(
    of_class_loss: Sequence[bool], rows: Rows, boxes, strides, offset, beta, loss_weights, backend
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Any]]:
    """The results, and those gradients of the class loss that are asked for, for an upstream gradient of 1."""
    qfl, giou, dfl, sides = _new_results(*rows)
    call = class_loss(rows, beta, loss_weights)
    gradients: list[Any] = []
    if True in of_class_loss:
        gradients = QFL.gradients(None, call, backend, of_class_loss, qfl)
    else:
        QFL.fill(qfl, call, backend)
    if not rows.weights.numel():
        return qfl, giou.zero_(), dfl.zero_(), sides, gradients
    implementation("gfl_loss", backend).box_loss_forward(
        box_logits=rows.box_logits,
        boxes=boxes,
        weights=rows.weights,
        normalisers=rows.normalisers,
        strides=strides,
        scales=rows.scales,
        projection=rows.projection,
        offset=offset,
        factors=_factors(loss_weights),
        sides=sides,
        giou=giou,
        dfl=dfl,
    )
    return qfl, giou, dfl, sides, gradients


def run(*arguments: Any) -> tuple[Tensor, ...]:
    return losses_and_gradients((), Rows(*arguments[:10]), *arguments[10:])[:4]


def _new_gradients(rows: Rows, predictor: Sequence[Tensor], needs: Needs) -> Gradients:
    return Gradients(
        [torch.empty_like(level) for level in rows.class_logits] if needs.class_logits else [],
        [torch.empty_like(level) for level in rows.box_logits] if needs.box_logits else [],
        [as_rows(tensor) for tensor in predictor] if needs.predictor else [],
        as_rows(rows.scales) if needs.scales else None,
        as_rows(rows.quality) if needs.quality else None,
    )


def run_backward(
    grads: Sequence[Tensor],
    rows: Rows,
    sides,
    grad_quality,
    predictor,
    topk,
    mean,
    variance,
    beta,
    loss_weights,
    backend,
    needs,
) -> Gradients:
    """Args: ``grads``: of the three losses. The others are those of the registered operation."""
    grad_qfl, grad_giou, grad_dfl = grads
    needs = Needs(*needs)
    wanted = _new_gradients(rows, predictor, needs)
    if not rows.weights.numel():
        for gradient in flatten(wanted):
            gradient.zero_()
        return wanted

    # 1. The class logits, and the quality.
    if grad_quality is None:
        if needs.quality or (predictor and needs.of_box_logits):
            grad_quality = wanted.quality if needs.quality else torch.empty_like(rows.quality)
        if needs.class_logits or grad_quality is not None:
            call = class_loss(rows, beta, loss_weights)
            QFL.fill_gradients((wanted.class_logits, grad_quality), grad_qfl, call, backend)

    # 2. The box logits, once: by way of the statistics and of the two box losses.
    if needs.of_box_logits:
        saved = (sides, rows.weights, rows.projection, rows.normalisers, grad_giou, grad_dfl, _factors(loss_weights))
        implementation("gfl_loss", backend).box_loss_backward(
            grad_quality=grad_quality if predictor else None,
            box_logits=rows.box_logits,
            predictor=predictor,
            scales=rows.scales,
            topk=topk,
            mean=mean,
            variance=variance,
            grad_logits=wanted.box_logits,
            grad_predictor=wanted.predictor,
            grad_scales=wanted.scales,
            box=SavedBoxLoss(*saved),
        )
    return wanted


def _fake_backward(*arguments: Any) -> list[Tensor]:
    return flatten(_new_gradients(Rows(*arguments[3:13]), arguments[15], Needs(*arguments[-1])))


def _converted(*arguments: Any) -> tuple[Tensor, ...]:
    """`run`, for small tensors of any dtype: somebody may call it by hand."""
    dtype = compute_dtype(arguments[1][0].dtype)
    small = (
        convert(tensor, torch.int64 if place == 5 else dtype)
        for place, tensor in enumerate(arguments[:11])
        if place > 1
    )
    return run(*arguments[:2], *small, *arguments[11:])


def _converted_backward(*arguments: Any) -> list[Tensor]:
    grads, maps, small, settings = arguments[:3], arguments[3:5], arguments[5:16], arguments[16:]
    dtype = compute_dtype(maps[1][0].dtype)
    converted = (convert(tensor, torch.int64 if place == 3 else dtype) for place, tensor in enumerate(small))
    rows = Rows(*maps, *(next(converted) for _ in range(8)))
    gradients = flatten(run_backward(convert(grads, dtype), rows, *converted, *settings))
    needs, (class_logits, box_logits), (quality, scales) = Needs(*arguments[-1]), maps, small[:2]
    every = zip((class_logits, box_logits, small[10], [scales], [quality]), needs, strict=True)
    given = [tensor for group, need in every if need for tensor in group]
    return [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, given, strict=True)]


# `normalisers`: N_pos and W. `grad_quality`: of the class loss, where it is known already.
_CONSTANTS = "Tensor labels, Tensor scores, Tensor weights, Tensor label_weights, Tensor normalisers"
_LOSS_SETTINGS = "float beta, float[] loss_weights, str backend"
registered = register(
    "gfl_loss",
    f"({ROWS}, {_CONSTANTS}, Tensor boxes, float[] strides, float offset, {_LOSS_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _converted,
    _new_results,
)
registered_backward = register(
    "gfl_loss_backward",
    f"(Tensor grad_qfl, Tensor grad_giou, Tensor grad_dfl, {ROWS}, {_CONSTANTS}, Tensor sides, Tensor? grad_quality, "
    f"Tensor[] predictor, int topk, bool mean, bool variance, {_LOSS_SETTINGS}, bool[] needs) -> Tensor[]",
    _converted_backward,
    _fake_backward,
    vmap=True,
)
