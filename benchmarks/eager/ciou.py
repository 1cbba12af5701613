"""``ciou``: two times (N, 4) boxes → Σ weight · (1 − CIoU) / avg_factor, in Ultralytics' convention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-7


def _loss(pred: list[Tensor], target: list[Tensor], weight: Tensor, avg_factor: float) -> Tensor:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = pred, target
    width, height, target_width, target_height = x2 - x1, y2 - y1 + EPS, u2 - u1, v2 - v1 + EPS
    common = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).relu() * (
        torch.minimum(y2, v2) - torch.maximum(y1, v1)
    ).relu()
    iou = common / (width * height + target_width * target_height - common + EPS)
    across, along = torch.maximum(x2, u2) - torch.minimum(x1, u1), torch.maximum(y2, v2) - torch.minimum(y1, v1)
    distance = ((u1 + u2 - x1 - x2).square() + (v1 + v2 - y1 - y2).square()) / 4
    v = (4 / math.pi**2) * (torch.atan(target_width / target_height) - torch.atan(width / height)).square()
    with torch.no_grad():
        share = v / (1 - iou + v + EPS)
    losses = 1 - iou + distance / (across * across + along * along + EPS) + v * share
    return (losses * weight).sum() / avg_factor


def _columns(split: Callable[[Tensor], list[Tensor]]) -> Callable[..., Tensor]:
    def form(pred: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
        return _loss(split(pred.float()), split(target.float()), weight, avg_factor)

    return form


FORMS = {
    "columns": _columns(lambda boxes: list(boxes.unbind(1))),
    "dense columns": _columns(lambda boxes: list(boxes.t().contiguous().unbind(0))),
}
