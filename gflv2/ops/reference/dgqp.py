"""Distribution-Guided Quality Predictor (arXiv 2011.12885, section 3.2): a quality from how sharp the sides are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.reference.rows import box_rows


class Predictor(NamedTuple):
    """The two layers behind the statistics, and which statistics they read.

    Attributes:
        weight1: (hidden, F) or (hidden, F, 1, 1), F = 4·(topk + mean + variance).
        bias1: (hidden,).
        weight2: (1, hidden) or (1, hidden, 1, 1).
        bias2: (1,).
        topk, mean, variance: as `dgqp_statistics`.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    topk: int = 4
    mean: bool = True
    variance: bool = False


def statistics_of(probabilities: Tensor, topk: int, mean: bool, variance: bool) -> Tensor:
    """(…, 4, R) probabilities → (…, F) statistics."""
    top = largest(probabilities, topk)
    parts = [top]
    if mean:
        parts.append(top.mean(-1, keepdim=True))
    if variance:
        parts.append((top - top.mean(-1, keepdim=True)).square().mean(-1, keepdim=True))
    return torch.cat(parts, dim=-1).flatten(-2)


def largest(probabilities: Tensor, topk: int) -> Tensor:
    """The k largest of the last dimension, descending; of equal ones the lower bin first, which only gradients see."""
    needs_gradient = torch.is_grad_enabled() and probabilities.requires_grad
    if backends.exporting() or not needs_gradient:  # ONNX has no stable sort
        return probabilities.topk(topk, dim=-1).values
    order = probabilities.detach().sort(dim=-1, descending=True, stable=True).indices[..., :topk]
    return probabilities.gather(-1, order)


def quality_of(statistics: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """(…, F) statistics → (…) quality logits: linear, ReLU, linear."""
    dtype = statistics.dtype
    with torch.autocast(statistics.device.type, enabled=False):
        hidden = torch.relu(statistics @ weight1.flatten(1).to(dtype).t() + bias1.to(dtype))
    # A product and a sum: its gradient for weight2 adds all points pairwise, where a matrix product with one column
    # adds them one after the other (ten times the rounding error on 5456 points).
    return (hidden * weight2.flatten().to(dtype)).sum(-1) + bias2.to(dtype).reshape(())


def dgqp_statistics(
    box_logits: Sequence[Tensor] | Tensor,
    *,
    scales: Tensor | None = None,
    topk: int = 4,
    mean: bool = True,
    variance: bool = False,
) -> Tensor:
    """For each side the k largest of softmax(scale · z), t1 ≥ … ≥ tk, their mean, their population variance.

    Args and result: as `gflv2.ops.dgqp_statistics`.
    """
    return statistics_of(box_rows(box_logits, scales).softmax(-1), topk, mean, variance)


def dgqp(
    box_logits: Sequence[Tensor] | Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    scales: Tensor | None = None,
    topk: int = 4,
    mean: bool = True,
    variance: bool = False,
) -> Tensor:
    """r = weight2 · relu(weight1 · F + bias1) + bias2 with the statistics F (paper: equation 5, before the sigmoid).

    Args and result: as `gflv2.ops.dgqp`.
    """
    statistics = dgqp_statistics(box_logits, scales=scales, topk=topk, mean=mean, variance=variance)
    return quality_of(statistics, weight1, bias1, weight2, bias2)
