"""``task_aligned``: the assignment of a batch by the points' own predictions."""

from __future__ import annotations

import torch

from benchmarks import inputs, peers
from benchmarks.eager.task_aligned import FORMS
from benchmarks.harness.cases import STRIDES, Case
from benchmarks.harness.operation import BATCHES, BOXES, SIZES, Inputs, Operation
from gflv2 import ops
from gflv2.ops.reference.boxes import points_of_levels, strides_of_points
from gflv2.ops.reference.task_aligned import task_aligned as reference


class Alignment(Operation):
    name = "task_aligned"
    axes = ("batch", "size", "boxes", "dtype")
    curves = {"size": SIZES, "batch": BATCHES, "boxes": BOXES}
    mode = "forward"
    forms = FORMS
    peers = {"ultralytics": peers.ultralytics.task_aligned}

    def run(self, *args, **kwargs) -> ops.TaskAlignment:
        return ops.task_aligned(*args, **kwargs)

    def reference(self, *args, **kwargs) -> ops.TaskAlignment:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        case = Case(batch=16, dtype="bfloat16") if device.type == "cuda" else Case(batch=8, size=(640, 640))
        return [case, case.but(boxes=300)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Predicted boxes reach some strides from their points, as those of a network do."""
        boxes, labels = inputs.boxes(case, device, seed)
        draw = inputs.generator(device, seed + 1)
        points = points_of_levels(case.level_shapes, STRIDES, offset=0.5, device=device)
        reach = strides_of_points(case.level_shapes, STRIDES, device=device)[:, None] * 5
        sides = torch.rand(case.batch, len(points), 4, generator=draw, device=device) * reach
        predicted = torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=-1)
        scores = 0.2 * torch.rand(case.batch, len(points), case.classes, generator=draw, device=device)
        return Inputs((scores.to(case.torch_dtype), predicted, points, boxes, labels))

    def moved(self, case: Case) -> dict[str, int]:
        found = case.batch * case.points * (8 + 4 + 8 + 4)  # index, overlap, label, target
        return {"forward": found + case.batch * (case.points * 4 * 4 + case.boxes * (4 * 4 + 8)) + 8 * case.points}


OPERATION = Alignment()
