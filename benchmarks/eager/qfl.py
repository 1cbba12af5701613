"""``qfl`` in its two forms of logits, summed and divided by ``avg_factor``; β = 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def probabilities(target, *, weight, avg_factor, logits=None, class_logits=None, quality_logits=None) -> Tensor:
    """The authors' formulas: binary cross-entropy of probabilities, the positive entries put over the negative ones."""
    labels, scores = (value.flatten() for value in target)
    if class_logits is None:
        joint = logits.float().sigmoid()
    else:
        flat = torch.cat([level.flatten(2).transpose(1, 2) for level in class_logits], dim=1).flatten(0, 1)
        joint = flat.float().sigmoid() * quality_logits.flatten()[:, None].sigmoid()
    loss = F.binary_cross_entropy(joint, torch.zeros_like(joint), reduction="none") * joint.pow(2)
    rows = (labels >= 0).nonzero().squeeze(1)
    classes = labels[rows]
    picked, wanted = joint[rows, classes], scores[rows]
    positive = F.binary_cross_entropy(picked, wanted, reduction="none") * (wanted - picked).abs().pow(2)
    loss[rows, classes] = positive
    return (loss.sum(1) * weight.flatten()).sum() / avg_factor


def correction(at_label: Tensor, scores: Tensor, positive: Tensor) -> Tensor:
    """What the label's class adds to the loss of a negative entry, from J there; 0 where not positive."""
    rest = torch.log1p(-at_label)
    wanted = -(scores * at_label.log() + (1 - scores) * rest) * (scores - at_label).square()
    return torch.where(positive, wanted + rest * at_label.square(), 0.0)


def gathered(target, *, weight, avg_factor, logits=None, class_logits=None, quality_logits=None) -> Tensor:
    """The loss of negatives over all entries, level by level where they lie, corrected at the label's class."""
    if class_logits is None:
        return _of_rows(target, logits, weight).sum() / avg_factor
    labels, scores = target
    start, total = 0, 0.0
    for level in class_logits:
        stop = start + level.shape[2] * level.shape[3]
        part = (slice(None), slice(start, stop))
        classes = level.flatten(2).float()
        joint = classes.sigmoid() * quality_logits[part].sigmoid()[:, None]
        negative = -(torch.log1p(-joint) * joint * joint).sum(1)
        at_label = joint.gather(1, labels[part].clamp(min=0)[:, None]).squeeze(1)
        rows = negative + correction(at_label, scores[part], labels[part] >= 0)
        total = total + (rows * weight[part]).sum()
        start = stop
    return total / avg_factor


def _of_rows(target: Sequence[Tensor], logits: Tensor, weight: Tensor) -> Tensor:
    labels, scores = target
    logits = logits.float()
    joint = logits.sigmoid()
    negative = (F.softplus(logits) * joint * joint).sum(1)
    at_label = joint.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    return (negative + correction(at_label, scores, labels >= 0)) * weight


FORMS = {"probabilities": probabilities, "gathered": gathered}
