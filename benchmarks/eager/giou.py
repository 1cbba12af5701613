"""``giou``: two times (N, 4) boxes → Σ weight · (1 − GIoU) / avg_factor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _loss(pred: list[Tensor], target: list[Tensor], weight: Tensor, avg_factor: float) -> Tensor:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = pred, target
    common = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).relu() * (
        torch.minimum(y2, v2) - torch.maximum(y1, v1)
    ).relu()
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - common).clamp(min=1e-6)
    hull = (torch.maximum(x2, u2) - torch.minimum(x1, u1)).relu() * (
        torch.maximum(y2, v2) - torch.minimum(y1, v1)
    ).relu()
    hull = hull.clamp(min=1e-6)
    # 1 − (I/U − (E − U)/E) = 2 − I/U − U/E
    return ((2 - common / union - union / hull) * weight).sum() / avg_factor


def _columns(split: Callable[[Tensor], list[Tensor]]) -> Callable[..., Tensor]:
    def form(pred: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
        return _loss(split(pred.float()), split(target.float()), weight, avg_factor)

    return form


FORMS = {
    "columns": _columns(lambda boxes: list(boxes.unbind(1))),
    "dense columns": _columns(lambda boxes: list(boxes.t().contiguous().unbind(0))),
}
