"""``atss``: the assignment of a batch."""

from __future__ import annotations

import torch

from benchmarks import inputs, peers
from benchmarks.eager.atss import FORMS
from benchmarks.harness.cases import STRIDES, Case
from benchmarks.harness.operation import BATCHES, BOXES, SIZES, Inputs, Operation
from gflv2 import ops
from gflv2.ops.reference.atss import atss as reference


class Assignment(Operation):
    name = "atss"
    axes = ("batch", "size", "boxes")
    curves = {"size": SIZES, "batch": BATCHES, "boxes": BOXES}
    mode = "forward"
    forms = FORMS
    static_form = "window"
    peers = {"mmdet": peers.mmdet.atss}

    def run(self, *args, **kwargs) -> ops.Assignment:
        return ops.atss(*args, **kwargs)

    def reference(self, *args, **kwargs) -> ops.Assignment:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        case = Case(batch=16 if device.type == "cuda" else 2)
        return [case, case.but(boxes=100)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        boxes, labels = inputs.boxes(case, device, seed)
        return Inputs((boxes, labels, case.level_shapes, STRIDES))

    def moved(self, case: Case) -> dict[str, int]:
        found = case.batch * case.points * (8 + 4 + 8)  # index, IoU, label
        return {"forward": found + case.batch * case.boxes * (4 * 4 + 8)}


OPERATION = Assignment()
