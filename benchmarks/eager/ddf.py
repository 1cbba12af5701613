"""``ddf``: (N, R) logits of student and teacher, (N,) matched → the means of both kinds, joined by root counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 5.0


def boolean_indexing(logits: Tensor, teacher_logits: Tensor, matched: Tensor, *, weight: Tensor) -> Tensor:
    """As D-FINE's authors have it: torch's divergence of every bin, and the rows of each kind picked out."""
    log_p = F.log_softmax(logits.float() / TEMPERATURE, dim=1)
    teacher = F.softmax(teacher_logits.float() / TEMPERATURE, dim=1)
    rows = weight * TEMPERATURE**2 * F.kl_div(log_p, teacher, reduction="none").sum(-1)
    first = rows[matched].mean() if matched.any() else 0
    second = rows[~matched].mean() if (~matched).any() else 0
    ours, others = matched.sum() ** 0.5, (~matched).sum() ** 0.5
    return (first * ours + second * others) / (ours + others)


def one_product(logits: Tensor, teacher_logits: Tensor, matched: Tensor, *, weight: Tensor) -> Tensor:
    """Both logarithms, the products of a row summed as they are formed, and one factor for each row."""
    log_p = F.log_softmax(logits.float() / TEMPERATURE, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / TEMPERATURE, dim=1)
    rows = torch.linalg.vecdot(log_teacher.exp(), log_teacher - log_p)
    count = matched.sum().float()
    roots = torch.stack([len(matched) - count, count]).clamp(min=1e-12).sqrt()
    factor = weight * (1 / (roots * roots.sum()))[matched.long()]
    return (rows * factor).sum() * TEMPERATURE**2


FORMS = {"boolean_indexing": boolean_indexing, "one_product": one_product}
