"""Predictions, points and boxes for the tests of ``task_aligned``."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Options = dict[str, Any]

ULTRALYTICS: Options = {"topk": 10, "alpha": 0.5, "beta": 6.0, "min_side": 16.0}
MMDET: Options = {
    **{"topk": 13, "alpha": 1, "beta": 6, "overlap": "iou", "candidates": "all", "margin": 0.01},
    **{"zeros": False, "contest": "claiming", "normalize": False},
}
SETTINGS: dict[str, Options] = {
    "ultralytics": ULTRALYTICS,
    "ultralytics, one point a box": {**ULTRALYTICS, "topk": 7, "final_topk": 1},
    "mmdet": MMDET,
    "few of all points": {"topk": 5, "candidates": "all", "alpha": 0.7, "beta": 2.5, "final_topk": 2},
    "no zeros": {"topk": 3, "zeros": False, "overlap": "iou", "beta": 3, "eps": 0.5},
    "32 points, score ignored": {"topk": 32, "alpha": 0, "beta": 1, "contest": "claiming", "final_topk": 32},
}
# Triton's interpreter pays for every box: a program each.
COUNTS = (4, 0, 7) if os.environ.get("TRITON_INTERPRET", "0") == "1" else (12, 0, 30)
KINDS = ("random", "tied", "broken")


def grid(size: int, strides: tuple[int, ...]) -> Tensor:
    """(A, 2): the points in the middle of the cells of a square image, level by level."""
    parts = [torch.zeros(0, 2)]
    for stride in strides:
        centres = torch.arange(stride / 2, size, stride)
        parts.append(torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).reshape(-1, 2))
    return torch.cat(parts)


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        kind: "random"; "tied": coordinates and scores of few values, so that metrics, overlaps and whole boxes are
            equal; "broken": NaN and infinity in all inputs, and labels that are no class.
        form: of the boxes: "ragged", "padded" with counts, "padded without counts".
        order: of the scores in memory: "bac", or "bca" with the points side by side.
    """

    kind: str = "random"
    counts: tuple[int, ...] = COUNTS
    classes: int = 4
    size: int = 96
    strides: tuple[int, ...] = (8, 16, 32)
    form: str = "ragged"
    dtype: torch.dtype = torch.float32
    order: str = "bac"
    seed: int = 0
    options: Options = field(default_factory=lambda: ULTRALYTICS)

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def inputs(self, device: torch.device | str = "cpu") -> Options:
        """The arguments of the call."""
        draw = torch.Generator().manual_seed(self.seed)
        batch, slots = len(self.counts), max(self.counts)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=draw)

        points = grid(self.size, self.strides)
        total = len(points)
        centre, half = rand(batch, slots, 2) * self.size, 1 + rand(batch, slots, 2) ** 2 * self.size * 0.4
        gt = torch.cat([centre - half, centre + half], -1).clamp(0, self.size)
        labels = torch.randint(0, self.classes, (batch, slots), generator=draw)
        scores = rand(batch, total, self.classes)
        # Most predictions are near some box, the others near their point.
        boxes = torch.cat([points - 9, points + 9], 1).expand(batch, -1, -1) + 4 * rand(batch, total, 4)
        if slots:
            number = torch.randint(0, slots, (batch, total, 1), generator=draw)
            near = gt.gather(1, number.expand(-1, -1, 4)) + 5 * torch.randn(batch, total, 4, generator=draw)
            boxes = torch.where(rand(batch, total, 1) < 0.6, near, boxes)
        if self.kind == "tied":
            gt, boxes, scores = (gt / 16).round() * 16, (boxes / 16).round() * 16, (scores * 3).round() / 4
        if self.kind == "broken":
            for step, value in ((7, math.nan), (9, math.inf), (11, -math.inf)):
                boxes.view(-1)[::step] = value
                scores.view(-1)[:: step + 2] = value
            scores[:, ::5] = -1.0
            gt.view(-1)[::23] = math.nan
            gt.view(-1)[9::41] = math.inf
            labels.view(-1)[::4] = torch.tensor([-1, self.classes, 2**40, -(2**40)]).repeat(labels.numel())[
                : len(labels.view(-1)[::4])
            ]
            points[::10] = math.nan
            points[3::17] = math.inf
        scores = scores.to(self.dtype)
        if self.order == "bca":
            scores = scores.transpose(1, 2).contiguous().transpose(1, 2)
        made: Options = {"scores": scores.to(device), "boxes": boxes.to(device), "points": points.to(device)}
        if self.form == "ragged":
            made["gt_boxes"] = [image[:count].to(device) for image, count in zip(gt, self.counts, strict=True)]
            made["gt_labels"] = [image[:count].to(device) for image, count in zip(labels, self.counts, strict=True)]
        else:
            made["gt_boxes"], made["gt_labels"] = gt.to(device), labels.to(device)
            if self.form == "padded":
                made["counts"] = torch.tensor(self.counts, device=device)
        return {**made, **self.options}
