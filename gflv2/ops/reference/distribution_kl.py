"""Kullback-Leibler divergence of two distributions over the bins (Localization Distillation, arXiv 2102.12252)."""

from __future__ import annotations

from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.reduction import reduce_loss


def distribution_kl_rows(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """(…, R) logits of the student and of the teacher → (…) losses."""
    dtype = compute_dtype(logits.dtype)
    log_p = (logits.to(dtype) / temperature).log_softmax(-1)
    log_teacher = (teacher_logits.detach().to(dtype) / temperature).log_softmax(-1)
    teacher = log_teacher.exp()
    # A bin that the teacher rules out costs nothing, even where a logit is −∞ (and 0 · ∞ no number).
    terms = (teacher * (log_teacher - log_p)).masked_fill(teacher == 0, 0.0)
    return terms.mean(-1) * temperature**2


def distribution_kl(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """T²/R · Σ_b P_t·(log P_t − log P_s) with P_s = softmax(z/T) of the student, P_t of the teacher.

    Args and result: as `gflv2.ops.distribution_kl`.
    """
    return reduce_loss(distribution_kl_rows(logits, teacher_logits, temperature), weight, avg_factor, reduction)
