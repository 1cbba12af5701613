"""Distributions of box sides in Ultralytics: their loss, the boxes in training, the distances in ``Detect``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gflv2.ops.dfl import dfl
from gflv2.ops.integral import integral

# How far a target distance stays below the last bin.
CLAMP = 0.01


def dfl_loss(self: Any, pred_dist: Tensor, target: Tensor) -> Tensor:
    """``DFLoss.__call__``: (P·4, R) logits and (P, 4) distances → (P, 1)."""
    distances = target.clamp(0, self.reg_max - 1 - CLAMP)
    return dfl(pred_dist, distances.flatten(), reduction="none").view(target.shape).mean(-1, keepdim=True)


def dfl_decode(self: Any, x: Tensor) -> Tensor:
    """``DFL.forward``: (B, 4·R, A) logits → (B, 4, A) distances. The bins' values are its convolution's weights."""
    distances = integral([x.unsqueeze(2)], self.conv.weight.flatten())
    return distances.transpose(1, 2).to(x.dtype)


def bbox_decode(original: Callable) -> Callable:
    """``v8DetectionLoss.bbox_decode``."""

    def bbox_decode(self: Any, anchor_points: Tensor, pred_dist: Tensor) -> Tensor:
        """(A, 2) points and (B, A, 4·R) logits → (B, A, 4) boxes (x1, y1, x2, y2), float32; all in strides."""
        if not self.use_dfl:
            return original(self, anchor_points, pred_dist)
        batch, points, channels = pred_dist.shape
        rows = pred_dist.reshape(batch * points, 4, channels // 4)
        centres = anchor_points.expand(batch, points, 2).reshape(-1, 2)
        boxes = integral(rows, self.proj, points=centres, strides=centres.new_ones(len(centres)))
        return boxes.view(batch, points, 4)

    return bbox_decode
