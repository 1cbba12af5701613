"""``dynamic_soft_label``: the assignment of a batch with RTMDet's costs, on its three levels."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import inputs, peers
from benchmarks.eager.dynamic_soft_label import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, BOXES, Inputs, Operation
from gflv2 import ops
from gflv2.ops.reference.boxes import distances_to_boxes, points_of_levels, strides_of_points
from gflv2.ops.reference.dynamic_soft_label import dynamic_soft_label as reference

_STRIDES = (8, 16, 32)


def _shapes(case: Case) -> list[tuple[int, int]]:
    return case.level_shapes[: len(_STRIDES)]


def _points(case: Case) -> int:
    return sum(height * width for height, width in _shapes(case))


class DynamicSoftLabel(Operation):
    name = "dynamic_soft_label"
    axes = ("batch", "size", "boxes", "classes", "dtype")
    curves = {"batch": BATCHES, "boxes": BOXES}
    mode = "forward"
    forms = FORMS
    peers = {"mmdet": peers.mmdet.dynamic_soft_label}

    def run(self, *args: Any, **kwargs: Any) -> ops.DynamicAssignment:
        return ops.dynamic_soft_label(*args, **kwargs)

    def reference(self, *args: Any, **kwargs: Any) -> ops.DynamicAssignment:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        case = Case(batch=8, size=(640, 640))
        return [case, case.but(boxes=300)]

    def curve_base(self, device: torch.device) -> Case:
        return Case(batch=1, size=(640, 640))

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Predictions of a detector on its way: near a box where there is one."""
        draw = inputs.generator(device, seed + 1)
        truth, labels = inputs.boxes(case, device, seed)
        points = points_of_levels(_shapes(case), _STRIDES, device=device)
        strides = strides_of_points(_shapes(case), _STRIDES, device=device)
        kind = {"generator": draw, "device": device}
        predicted = []
        for image in truth:
            spread = torch.exp(torch.randn(len(points), 4, **kind) * 0.5 + 1) * strides[:, None]
            boxes = distances_to_boxes(points, spread)
            for start in range(0, len(image), 100):
                part = image[start : start + 100]
                inside = ((points[:, None] > part[:, :2]) & (points[:, None] < part[:, 2:])).all(-1)
                near = part[inside.int().argmax(1)] + 0.3 * strides[:, None] * torch.randn(len(points), 4, **kind)
                boxes = torch.where(inside.any(1, keepdim=True), near, boxes)
            predicted.append(boxes)
        logits = torch.randn(case.batch, len(points), case.classes, **kind) - 3
        return Inputs((logits.to(case.torch_dtype), torch.stack(predicted), points, strides, truth, labels))

    def moved(self, case: Case) -> dict[str, int]:
        points = case.batch * _points(case)
        found = points * (8 + 4 + 8)  # index, IoU, label
        read = points * (case.classes * case.itemsize + 16) + _points(case) * 12
        return {"forward": found + read + case.batch * case.boxes * (4 * 4 + 8)}


OPERATION = DynamicSoftLabel()
