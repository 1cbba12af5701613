"""``gfl_loss``: the losses of the training head, the last of its three steps (`gflv2.ops.gfl_targets` has the others).

Losses: arXiv 2006.04388 (QFL equation 5, DFL equation 6), joint score: arXiv 2011.12885 (equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops import gfl_loss_passes as passes
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor, compute_dtype, values_are_checked
from gflv2.ops.dgqp import Predictor, refuse_triton
from gflv2.ops.gfl_loss_passes import Needs, Rows
from gflv2.ops.head import Head, check_rows, read_head, refuse_mixed
from gflv2.ops.observed import ordinary, saving_is_observed
from gflv2.ops.one_pass import one_pass
from gflv2.ops.qfl import OPERATION as QFL
from gflv2.ops.reference import gfl_loss as reference
from gflv2.ops.reference.gfl_loss import GFLLosses, GFLTargets
from gflv2.ops.registration import (
    constant,
    convert,
    prepared,
    refuse_double_backward,
    refuse_forward_mode,
    wants_gradient,
)

__all__ = ["GFLLosses", "gfl_loss"]

_INDICES, _NUMBERS = (torch.int64,), (torch.float32, torch.float64)
_TARGETS = {
    "index": _INDICES,
    "labels": _INDICES,
    "scores": _NUMBERS,
    "weights": _NUMBERS,
    "label_weights": _NUMBERS,
}


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
        Differentiable in the logits, scales, predictor tensors, quality logits and (through the boxes, by the
        reference alone) the projection. Without positive points the box losses are exactly 0, with gradients of 0.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    head = read_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits, offset)
    _check_targets(head, targets)
    check_tensor(normalisers, "normalisers", shape=(2,), device=head.box.device)
    check_number(beta, "beta", least=0)
    if not isinstance(loss_weights, (list, tuple)) or len(loss_weights) != 3:
        bad_value("loss_weights", "three numbers: QFL, GIoU, DFL", loss_weights)
    for number, weight in enumerate(loss_weights):
        if not (type(weight) is float and math.isfinite(weight)):  # the name is formed only for an error
            check_number(weight, f"loss_weights[{number}]")
    if projection is not None and values_are_checked():
        steps = projection.diff()
        if not torch.allclose(steps, steps[:1], rtol=1e-4):
            expected = "equal steps between the bins: DFL is defined on a uniform grid"
            bad_value("projection", expected, projection.tolist())
    backend = backends.select("gfl_loss", head.call())
    if backend == "reference":
        options = {**head.options(projection), "beta": float(beta), "loss_weights": loss_weights}
        return reference.gfl_loss(class_logits, box_logits, targets, normalisers, **options)

    refuse_forward_mode("gfl_loss", (class_logits, box_logits, scales, quality_logits, (predictor or ())[:4]))
    layers, shape = [], _NO_STATISTICS
    quality = quality_logits
    if predictor is not None:
        *layers, topk, mean, variance = predictor
        shape = (topk, mean, variance)
        quality = head.quality_logits(backend) if targets.quality is None else targets.quality
    class_logits, box_logits, quality, scales, projection = head.rows(quality)
    constants = (targets.labels, targets.scores, targets.weights, targets.label_weights, normalisers, targets.boxes)
    dtype = compute_dtype(head.box.dtype)
    projection, labels, *constants = [constant(tensor) for tensor in (projection, *constants)]
    layers, (scales, quality, projection, *constants) = (
        convert(group, dtype) for group in (layers, [scales, quality, projection, *constants])
    )
    constants = [projection, convert(labels, torch.int64), *constants]
    settings = (head.strides, head.offset, float(beta), [float(weight) for weight in loss_weights], backend)
    if not wants_gradient(class_logits, box_logits, layers, quality, scales):
        arguments = (class_logits, box_logits, quality, scales, *constants)
        run = passes.run if ordinary(arguments) else passes.registered
        return GFLLosses(*run(*arguments, *settings)[:3])
    # Flat: a list given to `apply` would get no gradient, silently.
    flat = (*(layers or [None] * 4), scales, quality, *constants, *class_logits, *box_logits)
    return GFLLosses(*_GflLoss.apply(settings, shape, *flat))


# Without a predictor the statistics have no gradient, and these settings no effect.
_NO_STATISTICS = (1, False, False)


def _check_targets(head: Head, targets: Any) -> None:
    if not isinstance(targets, GFLTargets):
        bad_type("targets", "a gflv2.ops.GFLTargets, as gfl_targets returns it", targets)
    check_rows(head, targets, "targets", _TARGETS)
    points, device = head.points, head.box.device
    check_tensor(targets.boxes, "targets.boxes", shape=(*points, 4), device=device)
    check_tensor(targets.sums, "targets.sums", shape=(2,), device=device)
    if targets.quality is not None and head.predictor is not None:
        check_tensor(targets.quality, "targets.quality", shape=points, device=device)


def _describe(*arguments: Any, **options: Any) -> backends.Call:
    return read_head(*arguments[:2], **options).call()


def _refuse(call: backends.Call) -> str | None:
    if call.facts["projection_learns"]:
        return "a projection that needs a gradient runs on reference only"
    return refuse_mixed(call)


backends.register(
    "gfl_loss",
    {
        "cuda": lambda call: _refuse(call) or backends.refuse_double(call),
        "triton": lambda call: _refuse(call) or refuse_triton(call),
        "cpu": _refuse,
        "reference": None,
    },
    _describe,
)


def _of_class_loss(needs: Needs, has_predictor: bool) -> list[bool]:
    """Which gradients of the class loss are needed: of the class logits, of the quality.

    That of the quality is needed for itself, or on the way to what the predictor reads.
    """
    return [needs.class_logits, needs.quality or (has_predictor and needs.of_box_logits)]


class _GflLoss(torch.autograd.Function):
    """The three losses.

    Inputs: settings, statistics; the predictor's four tensors, scales, quality; seven constants; the levels of class
    logits, the levels of box logits.
    """

    @staticmethod
    def forward(ctx: Any, settings: tuple, shape: tuple, *flat: Tensor | None) -> tuple[Tensor, ...]:
        (scales, quality), levels, has_predictor = flat[4:6], flat[13:], flat[0] is not None
        count = len(levels) // 2
        rows = Rows(levels[:count], levels[count:], quality, scales, *flat[6:12])
        ctx.settings, ctx.shape = settings, shape
        ctx.plain = ordinary(flat)
        ctx.hooked = ctx.plain and saving_is_observed()
        of_class_loss = _of_class_loss(_needs(ctx, has_predictor, count), has_predictor)
        ctx.one_pass = ctx.plain and True in of_class_loss and one_pass(settings[-1], "sum", (quality, levels[0]))
        if ctx.one_pass:
            found = passes.losses_and_gradients(of_class_loss, rows, flat[12], *settings)
            ctx.prepared = found[4]
        else:
            run = passes.run if ctx.plain else passes.registered
            found = run(*rows, flat[12], *settings)
        ctx.save_for_backward(*flat, found[3])
        return found[0], found[1], found[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("gfl_loss")
        saved = ctx.saved_tensors  # asked for once: under activation checkpointing each time computes forward anew
        if ctx.hooked:  # a hook may give back equal tensors with other strides
            small = [None if tensor is None else tensor.contiguous() for tensor in (*saved[:13], saved[-1])]
            saved = [*small[:13], *saved[13:-1], small[13]]
        layers, (scales, quality), levels = saved[:4], saved[4:6], saved[13:-1]
        count, has_predictor = len(levels) // 2, layers[0] is not None
        rows = Rows(levels[:count], levels[count:], quality, scales, *saved[6:12])
        needs = remaining = _needs(ctx, has_predictor, count)
        _, _, beta, loss_weights, backend = ctx.settings

        # 1. Of the class loss, where forward left it.
        class_gradients, grad_quality = None, None
        plain = ctx.plain and ordinary(grads)
        if ctx.one_pass and plain:
            of_class_loss = _of_class_loss(needs, has_predictor)
            call = passes.class_loss(rows, beta, loss_weights)
            again = lambda: QFL.gradients(None, call, backend, of_class_loss)  # noqa: E731
            class_gradients, grad_quality = prepared(ctx, grads[0], again)
            remaining = Needs(False, needs.box_logits, needs.predictor, needs.scales, False)

        # 2. The rest.
        predictor = layers if has_predictor else []
        given = (saved[-1], grad_quality, predictor, *ctx.shape, beta, loss_weights, backend, list(remaining))
        if plain:
            found = passes.run_backward(grads, rows, *given)
        else:
            found = passes.split_gradients(passes.registered_backward(*grads, *rows, *given), count, remaining)
        none = [None] * count
        if class_gradients is None:
            class_gradients, grad_quality = found.class_logits, found.quality
        of_small = (*(found.predictor or [None] * 4), found.scales, grad_quality if needs.quality else None)
        return None, None, *of_small, *[None] * 7, *(class_gradients or none), *(found.box_logits or none)


def _needs(ctx: Any, has_predictor: bool, count: int) -> Needs:
    wanted = ctx.needs_input_grad[2:]
    classes, boxes = wanted[13 : 13 + count], wanted[13 + count :]
    return Needs(True in classes, True in boxes, True in wanted[:4], wanted[4], wanted[5] and not has_predictor)
