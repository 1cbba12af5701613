"""``integral`` with strides: L levels of box logits → boxes (B, A, 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def bins_of(level: Tensor) -> Tensor:
    return torch.arange(level.shape[1] // 4, dtype=torch.float32, device=level.device)


def scaled(level: Tensor, scale: Tensor) -> Tensor:
    """(B, 4·R, H, W) → (B, 4, R, H, W) in float32, a view where nothing has to be converted."""
    return (level.float() * scale).unflatten(1, (4, -1))


def boxes_of(distances: Tensor, stride: float) -> Tensor:
    """(B, 4, H, W) distances in strides → (B, H·W, 4) boxes in pixels."""
    height, width = distances.shape[2:]
    x = torch.arange(width, device=distances.device) * float(stride)
    y = (torch.arange(height, device=distances.device) * float(stride))[:, None]
    left, top, right, bottom = (distances * stride).unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1).flatten(1, 2)


def over_levels(
    distances_of: Callable[[Tensor, Tensor], Tensor], box_logits: Sequence[Tensor], scales: Tensor, strides
) -> Tensor:
    parts = [
        boxes_of(distances_of(level, scale), stride)
        for level, scale, stride in zip(box_logits, scales.unbind(), strides, strict=True)
    ]
    return torch.cat(parts, dim=1)


def rows(box_logits: Sequence[Tensor], *, scales: Tensor, strides: Sequence[float]) -> Tensor:
    """As the authors have it: one row a side, softmax over the last dimension, a linear layer without bias."""

    def distances(level: Tensor, scale: Tensor) -> Tensor:
        batch, channels, height, width = level.shape
        flat = (level.float() * scale).permute(0, 2, 3, 1).reshape(-1, channels // 4)
        found = F.linear(F.softmax(flat, dim=1), bins_of(level)[None])
        return found.reshape(batch, height, width, 4).permute(0, 3, 1, 2)

    return over_levels(distances, box_logits, scales, strides)


def channels(box_logits: Sequence[Tensor], *, scales: Tensor, strides: Sequence[float]) -> Tensor:
    """Softmax over the channels where they lie, product and sum."""

    def distances(level: Tensor, scale: Tensor) -> Tensor:
        return (scaled(level, scale).softmax(2) * bins_of(level)[:, None, None]).sum(2)

    return over_levels(distances, box_logits, scales, strides)


def convolution(box_logits: Sequence[Tensor], *, scales: Tensor, strides: Sequence[float]) -> Tensor:
    """Softmax over the channels, the expectation by a grouped 1×1 convolution."""

    def distances(level: Tensor, scale: Tensor) -> Tensor:
        weight = bins_of(level).expand(4, 1, -1).reshape(4, -1, 1, 1)
        return F.conv2d(scaled(level, scale).softmax(2).flatten(1, 2), weight, groups=4)

    return over_levels(distances, box_logits, scales, strides)


def quotient(box_logits: Sequence[Tensor], *, scales: Tensor, strides: Sequence[float]) -> Tensor:
    """Two sums of exponentials and their quotient: no probability is stored."""

    def distances(level: Tensor, scale: Tensor) -> Tensor:
        logits = scaled(level, scale)
        powers = (logits - logits.detach().amax(2, keepdim=True)).exp()
        return (powers * bins_of(level)[:, None, None]).sum(2) / powers.sum(2)

    return over_levels(distances, box_logits, scales, strides)


FORMS = {"rows": rows, "channels": channels, "convolution": convolution, "quotient": quotient}
