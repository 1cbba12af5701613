"""The focal family: sigmoid focal, varifocal and matchability-aware loss, and IoU-aware binary cross-entropy.

With σ = σ(x) of a logit x, a negative is a·σ^γ·softplus(x), and the element of a row's label, with the score y:

* sigmoid_focal:       α·(1 − σ)^γ·softplus(−x)                     (arXiv 1708.02002)
* varifocal:           w·BCE(σ, y) with w = y, or 1                 (arXiv 2008.13367)
* matchability_aware:  BCE(σ, y^γ)                                  (arXiv 2412.04234)
* iou_aware_bce:       BCE(σ, t), t = max(σ^α·y^(1−α), 0.01)        (arXiv 2406.03459)

t is a constant to the gradient; so is the negatives' weight a·σ^γ with ``detach``. Scores are constants.

An infinite logit gives the limit: the loss is 0 or ∞, the gradients, which are written out for that, are finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.qfl import cross_entropy, modulation, modulation_slope
from gflv2.ops.reference.reduction import reduce_loss
from gflv2.ops.reference.rows import class_rows

LEAST_TARGET = 0.01  # of iou_aware_bce


class Settings(NamedTuple):
    """What the loss of a row depends on, beside its logits, label and score.

    Attributes:
        kind: "sigmoid_focal", "varifocal", "matchability_aware" or "iou_aware_bce".
        alpha: sigmoid_focal: factor of the label's element; iou_aware_bce: exponent of σ; else without meaning.
        negative: factor a of the negatives.
        gamma: exponent of σ in their weight.
        iou_weighted: varifocal: w is y.
        detach: their weight is a constant to the gradient.
    """

    kind: str
    alpha: float
    negative: float
    gamma: float
    iou_weighted: bool
    detach: bool


def _weighted(score: Tensor, loss: Tensor, gamma: float) -> Tensor:
    """σ^γ·softplus."""
    return loss * modulation(score, gamma)


def _slope(score: Tensor, rest: Tensor, loss: Tensor, gamma: float, detach: bool) -> Tensor:
    """Its derivative by x; where the loss is infinite, 1 − σ is 0."""
    direct = modulation(score, gamma) * score
    if detach:
        return direct
    return direct + torch.where(loss == torch.inf, 0.0, loss) * modulation_slope(score, gamma) * score * rest


def _target(x: Tensor, y: Tensor, how: Settings) -> Tensor:
    """What the cross-entropy at a label compares σ with."""
    if how.kind == "varifocal":
        return y
    if how.kind == "matchability_aware":
        target = y.pow(how.gamma)
    else:
        share = (how.alpha * logsigmoid(x)).exp() if how.alpha else 1.0  # σ^α, also where σ leaves the range of numbers
        target = (share * y.pow(1 - how.alpha)).clamp(min=LEAST_TARGET)
    return torch.where(y.isnan(), y, target)  # also with the exponent 0, to which a NaN is 1


class _Focal(torch.autograd.Function):
    """(N, C) logits, (N,) labels and scores → (N,) losses summed over the classes."""

    @staticmethod
    def parts(x: Tensor, labels: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """σ, 1 − σ, −log σ, −log(1 − σ); which elements are of labels, and y."""
        hit = labels[:, None] == torch.arange(x.shape[1], device=x.device)
        return x.sigmoid(), (-x).sigmoid(), -logsigmoid(x), -logsigmoid(-x), hit, scores[:, None].expand_as(x)

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, scores: Tensor, how: Settings) -> Tensor:
        ctx.save_for_backward(x, labels, scores)
        ctx.how = how
        score, rest, gain, loss, hit, y = _Focal.parts(x, labels, scores)
        if how.kind == "sigmoid_focal":
            positive = how.alpha * _weighted(rest, gain, how.gamma)
        else:
            positive = cross_entropy(_target(x, y, how), -gain, -loss)
            if how.kind == "varifocal" and how.iou_weighted:
                positive = y * torch.where((y == 0) & (positive == torch.inf), 0.0, positive)
        return torch.where(hit, positive, how.negative * _weighted(score, loss, how.gamma)).sum(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, labels, scores = ctx.saved_tensors
        how = ctx.how
        score, rest, gain, loss, hit, y = _Focal.parts(x, labels, scores)
        if how.kind == "sigmoid_focal":
            positive = -how.alpha * _slope(rest, score, gain, how.gamma, detach=False)
        else:
            target = _target(x, y, how)
            positive = score * (1 - target) - target * rest
            if how.kind == "varifocal" and how.iou_weighted:
                positive = y * positive
        negative = how.negative * _slope(score, rest, loss, how.gamma, how.detach)
        return torch.where(hit, positive, negative) * upstream[:, None], None, None, None


def focal(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor,
    scores: Tensor | None,
    how: Settings,
    *,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss of every row; `gflv2.ops.focal` with its settings resolved.

    Args:
        logits: levels (B, C, H, W), or rows (N, C).
        labels, scores: (B, A) or (N,); scores None: 1.
    """
    x = logits.to(compute_dtype(logits.dtype)) if isinstance(logits, Tensor) else class_rows(logits)
    if x.shape[-1] == 0:
        avg_factor = None  # there may be rows, but of no class
    shape = x.shape[:-1]
    x = x.flatten(0, -2)
    y = torch.ones_like(labels, dtype=x.dtype) if scores is None else scores.detach().to(x.dtype)
    loss = _Focal.apply(x, labels.flatten(), y.flatten(), how)
    return reduce_loss(loss.reshape(shape), weight, avg_factor, reduction)
