"""``gfl_targets``, ``normalisers`` and ``gfl_loss``: the training head in three steps.

    targets = gfl_targets(class_logits, box_logits, assignment, boxes, …)   # IoU targets, weights, their sums
    norms = normalisers(targets.sums)                                       # one all-reduce of two numbers
    losses = gfl_loss(class_logits, box_logits, targets, norms, …)

Losses: arXiv 2006.04388 (QFL equation 5, DFL equation 6), joint score: arXiv 2011.12885 (equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.atss import as_list, check_boxes, check_padded_sizes, valid_cells
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.box_losses import SavedBoxLoss
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor, compute_dtype, dense, values_are_checked
from gflv2.ops.dgqp import Predictor, check_predictor, layers_of, refuse_triton, wants_gradient
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import (
    BoxLogits,
    check_levels,
    check_projection,
    check_scales,
    check_strides,
    points_of,
    read_box_logits,
)
from gflv2.ops.one_pass import one_pass, ordinary, prepared
from gflv2.ops.qfl import apart, with_gradients
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import gfl_loss as reference
from gflv2.ops.reference.atss import Assignment
from gflv2.ops.reference.boxes import level_shapes_of
from gflv2.ops.reference.gfl_loss import GFLLosses, GFLTargets

__all__ = ["GFLLosses", "GFLTargets", "gfl_loss", "gfl_targets", "normalisers"]

# `valid`: rows and columns that count, image by image, level by level, or empty. `projection`, `normalisers` and
# `scales` are in the dtype of the arithmetic. `quality`: r of every point, or None: J = sigmoid(c).
_TARGETS = "Tensor labels, Tensor scores, Tensor weights, Tensor label_weights, Tensor normalisers"
_ROWS = "Tensor[] class_logits, Tensor[] box_logits, Tensor? quality, Tensor? scales, Tensor projection"
_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(
    f"gfl_targets({_ROWS}, Tensor index, Tensor assigned, Tensor[] boxes, SymInt[] valid, float[] strides, "
    "float offset, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# Returns the three losses, and the slopes that backward needs (`SavedBoxLoss`).
_library.define(
    f"gfl_loss({_ROWS}, {_TARGETS}, Tensor boxes, float[] strides, float offset, float beta, float[] loss_weights, "
    "str backend) -> (Tensor, Tensor)"
)
# `grad_quality`: of the class loss, where that is known already. `needs`: gradients of the class logits, the box
# logits, the predictor, the scales and the quality.
_library.define(
    f"gfl_loss_backward(Tensor grad, {_ROWS}, {_TARGETS}, Tensor slopes, Tensor? grad_quality, Tensor[] predictor, "
    "int topk, bool mean, bool variance, float beta, float[] loss_weights, str backend, bool[] needs) -> Tensor[]"
)


def gfl_targets(
    class_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    assignment: Assignment,
    boxes: Sequence[Tensor] | Tensor,
    *,
    strides: Sequence[float],
    scales: Tensor | None = None,
    projection: Tensor | None = None,
    predictor: Predictor | None = None,
    quality_logits: Tensor | None = None,
    counts: Tensor | None = None,
    offset: float = 0.0,
    padded_sizes: Sequence[tuple[float, float]] | None = None,
) -> GFLTargets:
    """What every point should learn: its box, the IoU of its prediction with that box (y), and its weight w = max J.

    Args:
        class_logits: L levels (B, C, H_l, W_l).
        box_logits: L levels (B, 4·R, H_l, W_l), channel = side·R + bin, before ``scales``.
        assignment: of `atss`, (B, A) each.
        boxes: B tensors (G_i, 4), (x1, y1, x2, y2) in pixels, or one padded tensor (B, G, 4) with ``counts``; those
            that `atss` was given.
        strides: one number a level, in pixels.
        scales: one factor of the box logits a level, (L,); None: 1.
        projection: the value of each bin in strides, (R,); None: 0, 1, …, R−1.
        predictor: gives the quality logits r from the distributions. Or
        quality_logits: r itself, (B, A). Neither: J = sigmoid(c).
        counts: as `atss`.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        padded_sizes: as `atss`: cells beyond have label weight 0. None: all cells count.

    Returns:
        GFLTargets, float32 (float64 for float64 box logits), without gradients. Its ``quality`` belongs to these
        logits: where `gfl_loss` is to see others, replace it with None.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call, box = check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)
    batch, points, _ = box.result_shape(0)
    if not isinstance(assignment, Assignment):
        bad_type("assignment", "a gflv2.ops.Assignment, as atss returns it", assignment)
    for name in ("index", "labels"):
        values = getattr(assignment, name)
        check_tensor(values, f"assignment.{name}", shape=(batch, points), dtypes=(torch.int64,), device=box.device)
    check_tensor(assignment.iou, "assignment.iou", shape=(batch, points), device=box.device)
    images, device = check_boxes(boxes, counts)
    if images != batch or device != box.device:
        bad_value("boxes", f"boxes of {batch} images on {box.device} like the logits", boxes)
    check_padded_sizes(padded_sizes, batch)
    check_number(offset, "offset")
    backend = backends.select("gfl_targets", call)
    if backend == "reference":
        return reference.gfl_targets(
            class_logits,
            box_logits,
            assignment,
            boxes,
            strides=[float(stride) for stride in strides],
            scales=scales,
            projection=projection,
            predictor=predictor,
            quality_logits=quality_logits,
            counts=counts,
            offset=offset,
            padded_sizes=padded_sizes,
        )
    strides = [float(stride) for stride in strides]
    with torch.no_grad():
        scales, projection = check_scales(scales, box), check_projection(projection, box)
        quality = quality_logits
        if predictor is not None:
            quality = _predicted(box, predictor, layers_of(predictor, box), scales, backend)
        found = torch.ops.gflv2.gfl_targets(
            list(class_logits),
            box.tensors,
            quality,
            scales,
            projection,
            assignment.index,
            assignment.labels,
            as_list(boxes),
            valid_cells(level_shapes_of(box.tensors), strides, padded_sizes),
            strides,
            float(offset),
            backend,
        )
    return GFLTargets(assignment.index, *found, None if predictor is None else quality)


def _predicted(
    box: BoxLogits, predictor: Predictor, layers: list[Tensor], scales: Tensor | None, backend: str
) -> Tensor:
    """Quality logits of every point."""
    shape = (predictor.topk, predictor.mean, predictor.variance)
    return torch.ops.gflv2.dgqp(box.tensors, layers, scales, *shape, backend)


def normalisers(sums: Tensor, *, weight_floor: float = 1e-12) -> Tensor:
    """What the losses are divided by: N_pos = max(mean over ranks of sums[0], 1), W = max(mean over ranks of sums[1],
    floor).

    The only collective of the training head: one all-reduce of two numbers where torch.distributed is initialised.
    Every rank must call it, whatever its images hold.

    Args:
        sums: (2,), of `gfl_targets`.
        weight_floor: 1e-12; 1 as mmdet 3 has it, which shrinks the box losses early in training.

    Returns:
        (2,) tensor on the same device; ``sums`` is left as it is.

    Raises:
        TypeError, ValueError: not a tensor of shape (2,), or a floor that is not positive.
    """
    check_tensor(sums, "sums", shape=(2,))
    check_number(weight_floor, "weight_floor", above=0)
    mean = sums.detach()
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        mean = mean.clone()
        distributed.all_reduce(mean)
        mean = mean / distributed.get_world_size()
    return torch.stack([mean[0].clamp(min=1.0), mean[1].clamp(min=weight_floor)])


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
    call, box = check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)
    batch, points, _ = box.result_shape(0)
    if not isinstance(targets, GFLTargets):
        bad_type("targets", "a gflv2.ops.GFLTargets, as gfl_targets returns it", targets)
    for name in ("index", "labels", "scores", "weights", "label_weights"):
        dtypes = (torch.int64,) if name in ("index", "labels") else (torch.float32, torch.float64)
        check_tensor(getattr(targets, name), f"targets.{name}", shape=(batch, points), dtypes=dtypes, device=box.device)
    check_tensor(targets.boxes, "targets.boxes", shape=(batch, points, 4), device=box.device)
    check_tensor(targets.sums, "targets.sums", shape=(2,), device=box.device)
    check_tensor(normalisers, "normalisers", shape=(2,), device=box.device)
    check_number(beta, "beta", least=0)
    if not isinstance(loss_weights, (list, tuple)) or len(loss_weights) != 3:
        bad_value("loss_weights", "three numbers: QFL, GIoU, DFL", loss_weights)
    for number, weight in enumerate(loss_weights):
        check_number(weight, f"loss_weights[{number}]")
    check_number(offset, "offset")
    if projection is not None and values_are_checked():
        steps = projection.diff()
        if not torch.allclose(steps, steps[:1], rtol=1e-4):
            bad_value(
                "projection", "equal steps between the bins: DFL is defined on a uniform grid", projection.tolist()
            )
    if targets.quality is not None and predictor is not None:
        check_tensor(targets.quality, "targets.quality", shape=(batch, points), device=box.device)
    backend = backends.select("gfl_loss", call)
    if backend == "reference":
        return reference.gfl_loss(
            class_logits,
            box_logits,
            targets,
            normalisers,
            strides=[float(stride) for stride in strides],
            scales=scales,
            projection=projection,
            predictor=predictor,
            quality_logits=quality_logits,
            beta=float(beta),
            loss_weights=loss_weights,
            offset=offset,
        )
    scales, layers = check_scales(scales, box), [None] * 4
    # Without a predictor the statistics have no gradient, and these settings no effect.
    shape = (min(4, box.bins), False, False)
    quality = quality_logits
    if predictor is not None:
        layers, shape = layers_of(predictor, box), (predictor.topk, predictor.mean, predictor.variance)
        quality = targets.quality
        if quality is None:
            with torch.no_grad():
                quality = _predicted(box, predictor, layers, scales, backend)
    constants = (
        *(targets.labels, targets.scores, targets.weights, targets.label_weights, targets.boxes),
        normalisers.to(compute_dtype(box.dtype)),
        check_projection(projection, box),
    )
    constants = tuple(tensor.detach() for tensor in constants)
    strides, loss_weights = [float(stride) for stride in strides], [float(weight) for weight in loss_weights]
    settings = (strides, float(offset), float(beta), loss_weights, shape, backend)
    levels = (*class_logits, *box.tensors)
    if wants_gradient(scales, quality, *layers, *levels):
        losses = _GflLoss.apply(*layers, scales, quality, *constants, *settings, *levels)
    else:
        arguments = _arguments(class_logits, box.tensors, scales, quality, constants, settings)
        losses = torch.ops.gflv2.gfl_loss(*arguments)[0]
    # Not by unbind, whose results refuse to be changed in place: `total = losses.qfl; total += losses.giou`.
    return GFLLosses(losses[0], losses[1], losses[2])


def check_head(
    class_logits: Any, box_logits: Any, strides: Any, scales: Any, projection: Any, predictor: Any, quality_logits: Any
) -> tuple[backends.Call, BoxLogits]:
    """The arguments that the training and the inference head share."""
    if isinstance(box_logits, Tensor):
        bad_type("box_logits", "a list of level tensors (B, 4·R, H, W)", box_logits)
    box = read_box_logits(box_logits)
    check_levels(class_logits, "class_logits", like=box.tensors)
    if class_logits[0].shape[1] == 0:
        bad_value("class_logits", "at least one class", class_logits[0])
    check_strides(strides, len(box.tensors))
    check_scales(scales, box)
    if projection is not None:
        check_tensor(projection, "projection", shape=(box.bins,), device=box.device)
    if predictor is not None:
        check_predictor(predictor, box)
        if quality_logits is not None:
            bad_value("quality_logits", "None with a predictor, which computes them", quality_logits)
    elif quality_logits is not None:
        check_tensor(quality_logits, "quality_logits", shape=box.result_shape(0)[:2], device=box.device)
    facts = {
        "bins": box.bins,
        "classes": class_logits[0].shape[1],
        "class_dtype": class_logits[0].dtype,
        "topk": None if predictor is None else predictor.topk,
        "hidden": 0 if predictor is None else predictor.weight1.shape[0],
        "projection_learns": projection is not None and wants_gradient(projection),
    }
    return backends.Call(box.device, box.dtype, facts), box


def _describe(
    class_logits: Any,
    box_logits: Any,
    *_: Any,
    strides: Any,
    scales: Any = None,
    projection: Any = None,
    predictor: Any = None,
    quality_logits: Any = None,
    **__: Any,
) -> backends.Call:
    return check_head(class_logits, box_logits, strides, scales, projection, predictor, quality_logits)[0]


def _refuse_mixed(call: backends.Call) -> str | None:
    if (call.facts["class_dtype"] == torch.float64) != (call.dtype == torch.float64):
        return "of class and box logits only one is float64"
    return None


def _refuse_loss(call: backends.Call) -> str | None:
    if call.facts["projection_learns"]:
        return "a projection that needs a gradient runs on reference only"
    return _refuse_mixed(call)


Refusal = Callable[[backends.Call], str | None]


def _either(first: Refusal, second: Refusal) -> Refusal:
    return lambda call: first(call) or second(call)


for _op, _refuse in (("gfl_targets", _refuse_mixed), ("gfl_loss", _refuse_loss)):
    _on_gpu = {"cuda": _either(_refuse, backends.refuse_double), "triton": _either(_refuse, refuse_triton)}
    backends.register(_op, {**_on_gpu, "cpu": _refuse, "reference": None}, _describe)


def _arguments(class_logits, box_logits, scales, quality, constants, settings) -> tuple[Any, ...]:
    """Of the registered forward operation, from those of ``_GflLoss.apply``."""
    labels, scores, weights, label_weights, boxes, norms, projection = constants
    strides, offset, beta, loss_weights, _, backend = settings
    rows = (list(class_logits), list(box_logits), quality, scales, projection)
    targets = (labels, scores, weights, label_weights, norms, boxes)
    return *rows, *targets, strides, offset, beta, loss_weights, backend


class _GflLoss(torch.autograd.Function):
    """The three losses as one tensor. Levels come last and flat: a list given to ``apply`` would get no gradient,
    silently."""

    @staticmethod
    def forward(ctx: Any, weight1, bias1, weight2, bias2, scales, quality, *arguments) -> Tensor:
        constants, settings, levels = arguments[:7], arguments[7:13], arguments[13:]
        count = len(levels) // 2
        forward = _arguments(levels[:count], levels[count:], scales, quality, constants, settings)
        of_class_loss = _of_class_loss(_needs(ctx, weight1 is not None, count), weight1 is not None)
        ctx.one_pass = any(of_class_loss) and one_pass(settings[-1], "sum", quality, *levels[:count])
        if ctx.one_pass:
            losses, slopes, *ctx.prepared = _forward(*forward, of_class_loss)
        else:
            losses, slopes = torch.ops.gflv2.gfl_loss(*forward)
        labels, scores, weights, label_weights, _, norms, projection = constants
        targets = (labels, scores, weights, label_weights, norms)
        ctx.save_for_backward(weight1, bias1, weight2, bias2, quality, scales, projection, *targets, slopes, *levels)
        ctx.settings = settings
        return losses

    @staticmethod
    @no_double_backward("gfl_loss")
    def backward(ctx: Any, grad: Tensor):
        saved = ctx.saved_tensors  # asked for once: under activation checkpointing each time computes forward anew
        predictor, rows, targets, levels = saved[:4], saved[4:7], saved[7:13], saved[13:]
        count, has_predictor = len(levels) // 2, predictor[0] is not None
        needs = remaining = _needs(ctx, has_predictor, count)
        _, _, beta, loss_weights, shape, backend = ctx.settings

        # 1. Of the class loss, where forward left it.
        class_gradients, grad_quality = [], None
        if ctx.one_pass and ordinary(grad):
            of_class_loss = _of_class_loss(needs, has_predictor)

            def again() -> list[Tensor]:
                labels, scores, _, label_weights, norms, _ = targets
                class_rows = (levels[:count], rows[0], labels, scores, label_weights, norms)
                return _class_loss(*class_rows, beta, loss_weights, backend, of_class_loss)[1:]

            class_gradients, grad_quality = apart(prepared(ctx, grad[0], again), count, of_class_loss)
            remaining = [False, *needs[1:4], False]

        # 2. The rest.
        found = torch.ops.gflv2.gfl_loss_backward(
            grad,
            levels[:count],
            levels[count:],
            *rows,
            *targets,
            grad_quality,
            predictor if has_predictor else [],
            *shape,
            beta,
            loss_weights,
            backend,
            remaining,
        )
        parts = _split(found, count, remaining)
        if remaining is not needs:
            parts = parts._replace(class_logits=class_gradients, quality=grad_quality if needs[4] else None)
        none = [None] * count
        return (
            *(parts.predictor or [None] * 4),
            parts.scales,
            parts.quality,
            *[None] * (len(ctx.needs_input_grad) - 6 - 2 * count),
            *(parts.class_logits or none),
            *(parts.box_logits or none),
        )


def _needs(ctx: Any, has_predictor: bool, count: int) -> list[bool]:
    """Of ``gfl_loss_backward``, for ``count`` levels."""
    wanted = ctx.needs_input_grad
    first = len(wanted) - 2 * count
    needs = [any(wanted[first : first + count]), any(wanted[first + count :]), any(wanted[:4]), wanted[4]]
    return [*needs, wanted[5] and not has_predictor]


def _of_class_loss(needs: Sequence[bool], has_predictor: bool) -> list[bool]:
    """Which of its gradients are needed: of the class logits; of the quality, for itself or on the way to what the
    predictor reads."""
    return [needs[0], needs[4] or (has_predictor and any(needs[1:4]))]


class _Gradients(NamedTuple):
    """Those that are not wanted are empty or None."""

    class_logits: list[Tensor]
    box_logits: list[Tensor]
    predictor: list[Tensor]
    scales: Tensor | None
    quality: Tensor | None


def _split(gradients: list[Tensor], count: int, needs: Sequence[bool]) -> _Gradients:
    sizes = [size * need for size, need in zip((count, count, 4, 1, 1), needs, strict=True)]
    parts, first = [], 0
    for size in sizes:
        parts.append(gradients[first : first + size])
        first += size
    return _Gradients(*parts[:3], *(part[0] if part else None for part in parts[3:]))


def _new_targets(box_logits: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Labels, boxes, scores, weights, label weights, sums."""
    first = box_logits[0]
    shape, dtype = (first.shape[0], points_of(box_logits)), compute_dtype(first.dtype)
    rows = (first.new_empty(shape, dtype=dtype) for _ in range(3))
    labels, boxes = first.new_empty(shape, dtype=torch.int64), first.new_empty((*shape, 4), dtype=dtype)
    return labels, boxes, *rows, first.new_empty(2, dtype=dtype)


def _targets(
    class_logits,
    box_logits,
    quality,
    scales,
    projection,
    index,
    assigned,
    boxes,
    valid,
    strides,
    offset,
    backend,
) -> tuple[Tensor, ...]:
    found = _new_targets(box_logits)
    if not found[0].numel():
        # Each image counts as one positive point.
        found[-1].zero_()[:1].fill_(index.shape[0])  # no tensor from the host's numbers: that copy would wait
        return found
    dtype = compute_dtype(box_logits[0].dtype)
    quality, scales, projection = dense((quality, scales, projection), dtype)
    implementation("gfl_targets", backend).gfl_targets(
        class_logits,
        box_logits,
        index.contiguous(),
        assigned.contiguous(),
        dense(boxes, dtype),
        valid,
        strides,
        scales,
        projection,
        quality,
        offset,
        *found,
    )
    return found


def _new_losses(box_logits: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(box_logits[0].dtype)
    return weights.new_empty(3, dtype=dtype), weights.new_empty((*weights.shape, 4, 2), dtype=dtype)


def _class_reduction(label_weights: Tensor, norms: Tensor, factor: float) -> Reduction:
    """Σ over points / N_pos, times its factor."""
    return Reduction(label_weights, norms[0], 1 / factor if factor else math.inf, "sum")


def _class_loss(
    class_logits, quality, labels, scores, label_weights, norms, beta, loss_weights, backend, needs
) -> list[Tensor]:
    """The class loss, and the gradients of it that are needed."""
    how = _class_reduction(label_weights, norms, loss_weights[0])
    return with_gradients(class_logits, quality, labels, scores, _form(quality), beta, *how, backend, needs)


def _factors(loss_weights: Sequence[float]) -> tuple[float, float]:
    """Of the two box losses; DFL is a mean over the sides."""
    return loss_weights[1], loss_weights[2] / 4


def _form(quality: Tensor | None) -> str:
    return "logits" if quality is None else "class_logits"


def _forward(
    class_logits,
    box_logits,
    quality,
    scales,
    projection,
    labels,
    scores,
    weights,
    label_weights,
    norms,
    boxes,
    strides,
    offset,
    beta,
    loss_weights,
    backend,
    of_class_loss=(False, False),
) -> tuple[Tensor, ...]:
    """Losses, slopes, and the gradients of the class loss that are asked for."""
    losses, slopes = _new_losses(box_logits, weights)
    class_rows, gradients = (class_logits, quality, labels, scores, label_weights, norms), []
    if any(of_class_loss):
        loss, *gradients = _class_loss(*class_rows, beta, loss_weights, backend, of_class_loss)
        losses[0] = loss
    if not weights.numel():
        return losses.zero_(), slopes, *gradients
    quality, scales, projection, scores, weights, label_weights, norms, boxes = dense(
        (quality, scales, projection, scores, weights, label_weights, norms, boxes), losses.dtype
    )
    if not gradients:
        how = _class_reduction(label_weights, norms, loss_weights[0])
        implementation("qfl", backend).qfl_forward(
            class_logits, quality, labels.contiguous(), scores, _form(quality), beta, how, losses[0]
        )
    implementation("gfl_loss", backend).box_loss_forward(
        box_logits,
        boxes,
        weights,
        norms[1],
        strides,
        scales,
        projection,
        offset,
        _factors(loss_weights),
        slopes,
        losses[1:],
    )
    return losses, slopes, *gradients


def _new_gradients(class_logits, box_logits, predictor, scales, quality, needs) -> list[Tensor]:
    gradients = [torch.empty_like(level) for level in class_logits] if needs[0] else []
    gradients += [torch.empty_like(level) for level in box_logits] if needs[1] else []
    gradients += [tensor.new_empty(tensor.shape) for tensor in predictor] if needs[2] else []
    gradients += [torch.empty_like(scales)] if needs[3] else []
    return gradients + ([quality.new_empty(quality.shape)] if needs[4] else [])


def _backward(
    grad,
    class_logits,
    box_logits,
    quality,
    scales,
    projection,
    labels,
    scores,
    weights,
    label_weights,
    norms,
    slopes,
    grad_quality,
    predictor,
    topk,
    mean,
    variance,
    beta,
    loss_weights,
    backend,
    needs,
) -> list[Tensor]:
    gradients = _new_gradients(class_logits, box_logits, predictor, scales, quality, needs)
    if not weights.numel():
        return [gradient.zero_() for gradient in gradients]
    wanted = _split(gradients, len(class_logits), needs)
    given = quality
    quality, scales, projection, scores, weights, label_weights, norms, grad = dense(
        (quality, scales, projection, scores, weights, label_weights, norms, grad), slopes.dtype
    )

    # 1. The class logits, and the quality.
    of_rows = any(needs[1:4])
    if grad_quality is None:
        if needs[4] or (predictor and of_rows):
            grad_quality = torch.empty_like(quality)
        if needs[0] or grad_quality is not None:
            class_loss = _class_reduction(label_weights, norms, loss_weights[0])
            implementation("qfl", backend).qfl_backward(
                grad[0],
                class_logits,
                quality,
                labels.contiguous(),
                scores,
                _form(quality),
                beta,
                class_loss,
                wanted.class_logits,
                grad_quality,
            )
        if needs[4]:
            wanted.quality.copy_(grad_quality.to(given.dtype))

    # 2. The box logits, once: by way of the statistics and of the two box losses.
    if of_rows:
        box = SavedBoxLoss(slopes, weights, projection, grad[1:], norms[1], _factors(loss_weights))
        implementation("gfl_loss", backend).box_loss_backward(
            grad_quality if predictor else None,
            box_logits,
            [tensor.contiguous() for tensor in predictor],
            scales,
            topk,
            mean,
            variance,
            wanted.box_logits,
            wanted.predictor,
            wanted.scales,
            box,
        )
    return gradients


for _key in ("CPU", "CUDA"):
    _library.impl("gfl_targets", _targets, _key)
    _library.impl("gfl_loss", _forward, _key)
    _library.impl("gfl_loss_backward", _backward, _key)
for _op in ("gfl_targets", "gfl_loss"):
    no_vmap(_op, _library)


@torch.library.register_fake("gflv2::gfl_targets", lib=_library)
def _(class_logits, box_logits, *_arguments) -> tuple[Tensor, ...]:
    return _new_targets(box_logits)


@torch.library.register_fake("gflv2::gfl_loss", lib=_library)
def _(class_logits, box_logits, quality, scales, projection, labels, scores, weights, *_arguments):
    return _new_losses(box_logits, weights)


@torch.library.register_fake("gflv2::gfl_loss_backward", lib=_library)
def _(grad, class_logits, box_logits, quality, scales, *arguments) -> list[Tensor]:
    predictor, needs = arguments[8], arguments[-1]
    return _new_gradients(class_logits, box_logits, predictor, scales, quality, needs)
