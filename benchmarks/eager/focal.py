"""``focal`` of rows of logits, summed and divided by ``avg_factor``; each kind with its published settings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def one_hot(logits: Tensor, target, *, kind: str, weight: Tensor, avg_factor: Tensor) -> Tensor:
    """The packages' formulas: targets and weights of every element."""
    labels, scores = (target, None) if kind == "sigmoid_focal" else target
    logits = logits.float()
    hit = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].float()
    probability = logits.sigmoid()
    if kind == "sigmoid_focal":
        rest = (1 - probability) * hit + probability * (1 - hit)
        factor, wanted = (0.25 * hit + 0.75 * (1 - hit)) * rest.pow(2), hit
    elif kind == "varifocal":
        wanted = hit * scores[:, None]
        factor = wanted + 0.75 * (probability - wanted).pow(2) * (1 - hit)
    elif kind == "matchability_aware":
        wanted = (hit * scores[:, None]).pow(1.5)
        factor = probability.detach().pow(1.5) * (1 - hit) + hit
    else:
        t = (probability.pow(0.25) * scores[:, None].pow(0.75)).clamp(min=0.01).detach()
        positive, negative = hit * t, torch.where(hit > 0, 1 - t, probability.pow(2))
        loss = negative * logits - F.logsigmoid(logits) * (positive + negative)
        return (loss * weight[:, None]).sum() / avg_factor
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * factor
    return (loss * weight[:, None]).sum() / avg_factor


def gathered(logits: Tensor, target, *, kind: str, weight: Tensor, avg_factor: Tensor) -> Tensor:
    """The loss of negatives over all elements, corrected at the label's."""
    labels, scores = (target, None) if kind == "sigmoid_focal" else target
    logits = logits.float()
    at_label = logits.gather(1, labels.clamp(max=logits.shape[1] - 1)[:, None]).squeeze(1)
    wanted = _positive(at_label, scores, kind) - _negative(at_label, kind)
    rows = _negative(logits, kind).sum(1) + torch.where(labels < logits.shape[1], wanted, 0.0)
    return (rows * weight).sum() / avg_factor


def _negative(logits: Tensor, kind: str) -> Tensor:
    probability = logits.sigmoid()
    if kind == "matchability_aware":
        return F.softplus(logits) * probability.detach().pow(1.5)
    factor = {"sigmoid_focal": 0.75, "varifocal": 0.75}.get(kind, 1.0)
    return F.softplus(logits) * (probability * probability) * factor


def _positive(logits: Tensor, scores: Tensor | None, kind: str) -> Tensor:
    if kind == "sigmoid_focal":
        return 0.25 * (-logits).sigmoid().square() * F.softplus(-logits)
    if kind == "varifocal":
        return scores * F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    if kind == "matchability_aware":
        wanted = scores.pow(1.5)
    else:
        wanted = (logits.sigmoid().pow(0.25) * scores.pow(0.75)).clamp(min=0.01).detach()
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


FORMS = {"one_hot": one_hot, "gathered": gathered}
