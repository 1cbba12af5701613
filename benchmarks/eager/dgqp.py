"""``dgqp``: statistics, 1×1 convolution, ReLU, 1×1 convolution → quality logits (B, A)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.eager.dgqp_statistics import STATISTICS, Statistics


def over_levels(statistics: Statistics) -> Callable[..., Tensor]:
    def form(
        box_logits: Sequence[Tensor],
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        *,
        scales: Tensor,
        topk: int,
    ) -> Tensor:
        parts = []
        for level, scale in zip(box_logits, scales.unbind(), strict=True):
            hidden = F.relu(F.conv2d(statistics(level, scale, topk), weight1[:, :, None, None], bias1))
            parts.append(F.conv2d(hidden, weight2[:, :, None, None], bias2).flatten(1))
        return torch.cat(parts, dim=1)

    return form


FORMS = {name: over_levels(statistics) for name, statistics in STATISTICS.items()}
