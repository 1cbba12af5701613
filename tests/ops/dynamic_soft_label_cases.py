"""Inputs for the tests of ``dynamic_soft_label``, and its costs written down plainly, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gflv2.ops import DynamicAssignment
from gflv2.ops.reference.boxes import distances_to_boxes, points_of_levels, strides_of_points
from gflv2.ops.reference.dynamic_soft_label import COSTS
from gflv2.ops.reference.giou import iou_rows
from tests.ops.under_test import INTERPRETED

SHAPES = ((5, 6), (3, 3)) if INTERPRETED else ((16, 20), (8, 10), (4, 5))
STRIDES = (8.0, 16.0, 32.0)
# Logarithms and powers of the backends differ by units in the last place: costs nearer than this may change places.
BAND = 2e-5


@dataclass(frozen=True)
class Case:
    """One call; the tensors follow from it and the seed."""

    cost: str = "rtmdet"
    counts: tuple[int, ...] = (6, 0) if INTERPRETED else (7, 0, 40)  # boxes of each image
    classes: int = 20
    form: str = "ragged"  # or "padded", "padded without counts"
    layout: str = "dense"  # or "maps": (B, C, A) in memory; "part": of a wider tensor, as NanoDet has it
    dtype: torch.dtype = torch.float32
    kind: str = "trained"  # predictions near the boxes; or "random"; "twins": every box and every point twice
    topk: int | None = None
    options: tuple[tuple[str, float], ...] = ()
    seed: int = 0

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    def inputs(self, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        draw = torch.Generator().manual_seed(self.seed)
        shapes, scales = SHAPES, STRIDES[: len(SHAPES)]
        points, strides = points_of_levels(shapes, scales), strides_of_points(shapes, scales)
        size = torch.tensor([shapes[0][1], shapes[0][0]]) * scales[0]
        truths = []
        for count in self.counts:
            corner = torch.rand(count, 2, generator=draw) * size * 0.8
            extent = 4 + torch.rand(count, 2, generator=draw) ** 2 * size * 0.7
            truths.append(torch.cat([corner, corner + extent], 1))
        if self.kind == "twins":
            truths = [image.repeat_interleave(2, 0) for image in truths]
            points, strides = points.repeat(2, 1), strides.repeat(2)
        labels = [torch.randint(0, self.classes, (len(image),), generator=draw) for image in truths]
        if self.kind == "twins":
            labels = [image[::2].repeat_interleave(2) for image in labels]
        parts = [self._predictions(image, points, strides, draw) for image in truths]
        boxes = torch.stack([part[0] for part in parts])
        values = torch.stack([part[1] for part in parts])
        if COSTS[self.cost].probabilities:
            values = values.sigmoid()
        gt_boxes, gt_labels, more = self._formed(truths, labels, device)
        more |= {"cost": self.cost, "topk": self.topk, **dict(self.options)}
        values = self._laid_out(values.to(self.dtype).to(device))
        return (values, boxes.to(device), points.to(device), strides.to(device), gt_boxes, gt_labels), more

    def _predictions(self, truth: Tensor, points: Tensor, strides: Tensor, draw: torch.Generator):
        half = len(points) // 2 if self.kind == "twins" else len(points)
        at, scale = points[:half], strides[:half, None]
        boxes = distances_to_boxes(at, scale * torch.exp(0.6 * torch.randn(half, 4, generator=draw) + 0.7))
        values = torch.randn(half, self.classes, generator=draw) - 2
        if self.kind == "trained" and len(truth):
            inside = ((at[:, None] > truth[:, :2]) & (at[:, None] < truth[:, 2:])).all(-1)
            own = (inside + 1e-3 * torch.rand(inside.shape, generator=draw)).argmax(1)
            near = truth[own] + 0.5 * scale * torch.randn(half, 4, generator=draw)
            boxes = torch.where(inside.any(1, keepdim=True), near, boxes)
        if self.kind == "twins":
            return boxes.repeat(2, 1), values.repeat(2, 1)
        return boxes, values

    def _formed(self, truths: list[Tensor], labels: list[Tensor], device: torch.device | str):
        if self.form == "ragged":
            return [image.to(device) for image in truths], [image.to(device) for image in labels], {}
        slots = max(map(len, truths)) + 2
        # What is behind the boxes of an image must not matter; without counts they are boxes like the others.
        fill = torch.tensor([10.0, 12.0, 60.0, 50.0])
        boxes = torch.stack([torch.cat([image, fill.expand(slots - len(image), 4)]) for image in truths])
        padded = torch.stack([F.pad(image, (0, slots - len(image)), value=1) for image in labels])
        counts = torch.tensor([len(image) for image in truths], device=device)
        return boxes.to(device), padded.to(device), {"counts": counts} if self.form == "padded" else {}

    def _laid_out(self, values: Tensor) -> Tensor:
        if self.layout == "maps":
            return values.transpose(1, 2).contiguous().transpose(1, 2)
        if self.layout == "part":
            return torch.cat([values, torch.full_like(values, torch.nan)], 2)[..., : self.classes]
        return values


def plain(case: Case) -> tuple[DynamicAssignment, Tensor]:
    """The assignment, image by image with every (point, box, class), and where it hangs on costs within the band."""
    (values, boxes, points, strides, truths, labels), more = case.but(form="ragged").inputs()
    kind = COSTS[case.cost]
    results, unsure = [], []
    for i, (truth, label) in enumerate(zip(truths, labels, strict=True)):
        found = _one_image(values[i].double(), boxes[i], points, strides, truth, label, kind, more)
        results.append(found[0])
        unsure.append(found[1])
    return DynamicAssignment(*(torch.stack(part) for part in zip(*results, strict=True))), torch.stack(unsure)


def _one_image(values, boxes, points, strides, truth, label, kind, more):
    total, count = len(points), len(truth)
    index = torch.zeros(total, dtype=torch.int64)
    nothing = (index, torch.zeros(total), torch.full((total,), -1))
    unsure = torch.zeros(total, dtype=torch.bool)
    if count == 0:
        return nothing, unsure
    radius = more.get("center_radius", kind.center_radius)
    topk = kind.topk if more["topk"] is None else more["topk"]
    inside = torch.cat([points[:, None] - truth[:, :2], truth[:, 2:] - points[:, None]], -1).amin(-1) > 0
    centre = (truth[:, :2] + truth[:, 2:]) / 2
    free = inside
    if kind.penalty:
        near = (points[:, None] - centre).abs().amax(-1) < radius * strides[:, None]
        free, inside = inside & near, inside | near
    valid = inside.any(1)
    if not valid.any():
        return nothing, unsure
    ious = iou_rows(boxes[:, None], truth)  # float32: k hangs on its bits
    target = F.one_hot(label, values.shape[1]).double().expand(total, -1, -1)
    spread = values[:, None].expand(-1, count, -1)
    if kind.soft:
        target = target * ious.double()[..., None]
    if kind.probabilities:
        term, score = F.binary_cross_entropy(spread, target, reduction="none"), spread
    else:
        term, score = F.binary_cross_entropy_with_logits(spread, target, reduction="none"), spread.sigmoid()
    if kind.soft:
        term = term * (target - score).square()
    costs = more.get("class_weight", 1.0) * term.sum(-1) - more.get("iou_weight", 3.0) * (ious.double() + 1e-7).log()
    if kind.penalty:
        costs = costs + kind.penalty * ~free
    elif radius is not None:
        costs = costs + 10 ** ((points[:, None] - centre).double().norm(dim=-1) / strides[:, None] - radius)
    band = BAND * costs.abs().clamp(min=1) if not kind.penalty else torch.where(free, BAND, 1e-7 * kind.penalty + 1e-2)
    costs = torch.where(valid[:, None], costs, torch.inf)

    taken = torch.zeros(total, count, dtype=torch.bool)
    for box in range(count):
        best = torch.where(valid, ious[:, box], 0).topk(min(topk, total)).values
        k = max(1, int(sum(best.tolist()[1:], best[0])))  # in float32, highest first
        order = costs[:, box].argsort(stable=True)
        order = order[valid[order]]
        taken[order[:k], box] = True
        last = order[:k][-1]
        unsure |= valid & ((costs[:, box] - costs[last, box]).abs() < band[:, box]) & (len(order) > k)
    several = taken.sum(1) > 1
    lowest = costs.argmin(1)
    index = torch.where(several, lowest + 1, torch.where(taken.any(1), taken.int().argmax(1) + 1, 0))
    if count > 1:
        two = costs.topk(2, dim=1, largest=False).values
        unsure |= several & (two[:, 1] - two[:, 0] < band.amax(1))
    own = (index - 1).clamp(min=0)
    iou = torch.where(index > 0, ious.gather(1, own[:, None])[:, 0], 0.0)
    return (index, iou, torch.where(index > 0, label[own], -1)), unsure
