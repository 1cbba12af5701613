"""Quality Focal Loss (arXiv 2006.04388, equation 5), on a logit, on class logit × quality logit, or on a probability.

With the score J and its target y, per class: BCE(J, y)·|y − J|^β, the modulating factor not detached.

* logits c:                J = σ(c)
* class and quality c, r:  J = σ(c)·σ(r)  (arXiv 2011.12885, equation 1)

For logits everything is formed from log J = logσ(c) + logσ(r) and log(1 − J) = logaddexp(logσ(−c), logσ(c) + logσ(−r)),
the gradients too: ∂L/∂c = |J−y|^β·(J−y)·(1−σ(c))/(1−J) + BCE·β|J−y|^(β−1)·sign(J−y)·J·(1−σ(c)), where the quotient
(1−σ(c))/(1−J) ≤ 1 is the exponential of a difference of logarithms. Automatic differentiation would give 0/0 there.

An infinite logit gives the limit: the loss is 0 where J → y, and ∞ where it grows without bound; the gradients are
finite always. (Where both logits are +∞, 1 − J → 0 in equal parts from both of them, as for two equal logits.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference.reduction import reduce_loss
from gflv2.ops.reference.rows import class_rows

LOG_FLOOR = -100.0  # of log p and log(1 − p) for explicit probabilities
SLOPE_FLOOR = 1e-12  # of p·(1 − p) in their gradient


def modulation(difference: Tensor, beta: float) -> Tensor:
    """|difference|^β; 1 for β = 0."""
    if beta == 2:
        return difference * difference
    return difference.abs().pow(beta)


def modulation_slope(difference: Tensor, beta: float) -> Tensor:
    """Its derivative β·|difference|^(β−1)·sign, defined as 0 at 0."""
    if beta == 2:
        return 2 * difference
    size = difference.abs()
    # Below the smallest normal number the power would be infinite for β near 0, and β·∞ is NaN for β = 0.
    safe = size.clamp(min=torch.finfo(size.dtype).tiny)
    return torch.where(size > 0, beta * safe.pow(beta - 1) * difference.sign(), 0.0)


def cross_entropy(y: Tensor, log_score: Tensor, log_rest: Tensor) -> Tensor:
    """−y·log J − (1 − y)·log(1 − J); what has no share does not count, be it infinite."""
    return -(torch.where(y == 0, 0.0, y * log_score) + torch.where(y == 1, 0.0, (1 - y) * log_rest))


def share_of_rest(logit: Tensor, log_rest: Tensor) -> Tensor:
    """(1 − σ(logit))/(1 − J)."""
    share = (logsigmoid(-logit) - log_rest).exp()
    return torch.where(log_rest == -torch.inf, 0.5, share)  # both logits are +∞


class _FromLogits(torch.autograd.Function):
    """(N, C) class logits, (N,) quality logits or None, (N, C) targets → (N,) losses summed over the classes."""

    @staticmethod
    def parts(c: Tensor, r: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """J, log(1 − J) and BCE(J, y)."""
        if r is None:
            score, log_score, log_rest = c.sigmoid(), logsigmoid(c), logsigmoid(-c)
        else:
            r = r[:, None]
            score, log_score = c.sigmoid() * r.sigmoid(), logsigmoid(c) + logsigmoid(r)
            log_rest = torch.logaddexp(logsigmoid(-c), logsigmoid(c) + logsigmoid(-r))
        return score, log_rest, cross_entropy(y, log_score, log_rest)

    @staticmethod
    def forward(ctx: Any, c: Tensor, r: Tensor | None, y: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(c, r, y)
        ctx.beta = beta
        score, _, bce = _FromLogits.parts(c, r, y)
        # Infinite also where y is so small that its power is 0.
        return torch.where(bce == torch.inf, bce, bce * modulation(score - y, beta)).sum(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        c, r, y = ctx.saved_tensors
        score, log_rest, bce = _FromLogits.parts(c, r, y)
        difference = score - y
        # ∂L/∂J = direct/(1 − J)/J + through, and ∂J/∂c = J·(1 − σ(c)), likewise for r.
        direct = modulation(difference, ctx.beta) * difference
        # Where the cross entropy is infinite, J or 1 − J is 0.
        through = torch.where(bce == torch.inf, 0.0, bce) * modulation_slope(difference, ctx.beta) * score
        if r is None:
            return (direct + through * (-c).sigmoid()) * upstream[:, None], None, None, None
        r = r[:, None]
        slope_c = direct * share_of_rest(c, log_rest) + through * (-c).sigmoid()
        slope_r = direct * share_of_rest(r, log_rest) + through * (-r).sigmoid()
        return slope_c * upstream[:, None], slope_r.sum(1) * upstream, None, None


class _FromProbabilities(torch.autograd.Function):
    """(N, C) probabilities and targets → (N,) losses; logarithms and slopes floored as torch's own BCE does."""

    @staticmethod
    def bce(p: Tensor, y: Tensor) -> Tensor:
        return -(y * p.log().clamp(min=LOG_FLOOR) + (1 - y) * torch.log1p(-p).clamp(min=LOG_FLOOR))

    @staticmethod
    def forward(ctx: Any, p: Tensor, y: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(p, y)
        ctx.beta = beta
        return (_FromProbabilities.bce(p, y) * modulation(p - y, beta)).sum(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, y = ctx.saved_tensors
        difference = p - y
        direct = modulation(difference, ctx.beta) * difference / (p * (1 - p)).clamp(min=SLOPE_FLOOR)
        through = _FromProbabilities.bce(p, y) * modulation_slope(difference, ctx.beta)
        return (direct + through) * upstream[:, None], None, None


def dense_target(labels: Tensor, scores: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(N,) labels and scores → (N, C): the score at the label's class, 0 elsewhere; other labels are background."""
    hit = labels[:, None] == torch.arange(classes, device=labels.device)
    return torch.where(hit, scores.detach().to(dtype)[:, None], 0.0)


def qfl_rows(
    class_logits: Tensor, quality_logits: Tensor | None, labels: Tensor, scores: Tensor, beta: float
) -> Tensor:
    """(N, C), (N,) or None, (N,), (N,) → (N,) losses, summed over the classes."""
    target = dense_target(labels, scores, class_logits.shape[1], class_logits.dtype)
    return _FromLogits.apply(class_logits, quality_logits, target, beta)


def qfl(
    target: tuple[Tensor, Tensor] | Tensor,
    *,
    logits: Tensor | Sequence[Tensor] | None = None,
    class_logits: Tensor | Sequence[Tensor] | None = None,
    quality_logits: Tensor | None = None,
    probabilities: Tensor | Sequence[Tensor] | None = None,
    beta: float = 2.0,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ_classes BCE(J, y)·|y − J|^β for every row, in one of three named forms.

    Args and result: as `gflv2.ops.qfl`.
    """
    given = next(value for value in (logits, class_logits, probabilities) if value is not None)
    if isinstance(given, Tensor):
        given = given.to(compute_dtype(given.dtype))
    else:
        given = class_rows(given)
    if given.numel() == 0:
        avg_factor = None  # there may be rows, but of no class
    shape = given.shape[:-1]  # (N,), or (B, A) of levels
    given = given.flatten(0, -2)
    if isinstance(target, Tensor):
        y = target.detach().to(given.dtype)
    else:
        y = dense_target(target[0].flatten(), target[1].flatten(), given.shape[1], given.dtype)
    if probabilities is not None:
        loss = _FromProbabilities.apply(given, y, float(beta))
    else:
        quality = None if quality_logits is None else quality_logits.to(given.dtype).flatten()
        loss = _FromLogits.apply(given, quality, y, float(beta))
    return reduce_loss(loss.reshape(shape), weight, avg_factor, reduction)
