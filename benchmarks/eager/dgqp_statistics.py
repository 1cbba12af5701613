"""``dgqp_statistics``: the k largest probabilities of each side and their mean, (B, A, 4·(k + 1))."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.eager.integral import scaled

Statistics = Callable[[Tensor, Tensor, int], Tensor]


def with_mean(top: Tensor) -> Tensor:
    """(B, 4, k, H, W) → (B, 4·(k + 1), H, W)."""
    return torch.cat([top, top.mean(2, keepdim=True)], dim=2).flatten(1, 2)


def by_topk(level: Tensor, scale: Tensor, topk: int) -> Tensor:
    """As the authors have it: topk over the channels."""
    return with_mean(scaled(level, scale).softmax(2).topk(topk, dim=2).values)


def by_rows(level: Tensor, scale: Tensor, topk: int) -> Tensor:
    """The bins are brought together first: torch's topk works on the last dimension."""
    probabilities = scaled(level, scale).permute(0, 1, 3, 4, 2).contiguous().softmax(-1)
    top = probabilities.topk(topk, dim=-1).values
    return with_mean(top.permute(0, 1, 4, 2, 3))


def by_peeling(level: Tensor, scale: Tensor, topk: int) -> Tensor:
    """k times the maximum, which is then taken out: each is one pass over the channels where they lie."""
    probabilities = scaled(level, scale).softmax(2)
    top = []
    rest = probabilities.detach().clone()
    for _ in range(topk):
        place = rest.argmax(2, keepdim=True)
        top.append(place)
        rest.scatter_(2, place, -1.0)
    return with_mean(probabilities.gather(2, torch.cat(top, dim=2)))


def over_levels(statistics: Statistics) -> Callable[..., Tensor]:
    def form(box_logits: Sequence[Tensor], *, scales: Tensor, topk: int) -> Tensor:
        parts = [statistics(level, scale, topk) for level, scale in zip(box_logits, scales.unbind(), strict=True)]
        return torch.cat([part.flatten(2) for part in parts], dim=2).transpose(1, 2)

    return form


STATISTICS = {"topk": by_topk, "rows": by_rows, "peeling": by_peeling}
FORMS = {name: over_levels(statistics) for name, statistics in STATISTICS.items()}
