"""``distribution_kl``: (N, R) logits of student and teacher → Σ weight · T²/R · divergence / avg_factor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def elements_of_kl_div(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: Tensor, avg_factor: float
) -> Tensor:
    """As LD's authors and mmdet have it: torch's divergence of every bin, then their mean."""
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.softmax(teacher_logits.float() / temperature, dim=1)
    losses = F.kl_div(log_p, teacher, reduction="none").mean(1) * temperature**2
    return (losses * weight).sum() / avg_factor


def cross_entropy_less_entropy(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: Tensor, avg_factor: float
) -> Tensor:
    """Only the cross-entropy has a gradient, and torch has it in one operation; the teacher's entropy is a constant."""
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    teacher = log_teacher.exp()
    entropy = torch.linalg.vecdot(teacher, log_teacher).neg()
    losses = F.cross_entropy(logits.float() / temperature, teacher, reduction="none") - entropy
    return (losses * weight).sum() * (temperature**2 / logits.shape[1] / avg_factor)


def one_product(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: Tensor, avg_factor: float
) -> Tensor:
    """Both logarithms, and the products of a row summed as they are formed: no tensor of divergences is kept."""
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    losses = torch.linalg.vecdot(log_teacher.exp(), log_teacher - log_p)
    return (losses * weight).sum() * (temperature**2 / logits.shape[1] / avg_factor)


def one_matrix_product(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float, weight: Tensor, avg_factor: float
) -> Tensor:
    """The weights go into the teacher's distribution, and the whole sum is one scalar product."""
    inverse = 1 / temperature
    log_p = torch.log_softmax(logits.float() * inverse, dim=1)
    log_teacher = torch.log_softmax(teacher_logits.float() * inverse, dim=1)
    shares = log_teacher.exp().mul_(weight[:, None])
    total = torch.dot(shares.reshape(-1), (log_teacher - log_p).reshape(-1))
    return total * (temperature**2 / logits.shape[1] / avg_factor)


FORMS = {
    "elements_of_kl_div": elements_of_kl_div,
    "cross_entropy_less_entropy": cross_entropy_less_entropy,
    "one_product": one_product,
    "one_matrix_product": one_matrix_product,
}
