"""``integral`` with strides: from the box logits of all levels to boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.eager.integral import FORMS
from benchmarks.harness.cases import STRIDES, Case
from benchmarks.harness.operation import BATCHES, REG_MAX, SIZES, Inputs, Operation, both
from gflv2 import ops
from gflv2.ops.reference.integral import integral as reference


class Integral(Operation):
    name = "integral"
    axes = ("batch", "size", "reg_max", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "reg_max": REG_MAX}
    forms = FORMS

    def run(self, *args, **kwargs) -> Tensor:
        return ops.integral(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        box_logits, scales = inputs.box_levels(case, inputs.generator(device, seed))
        return Inputs((box_logits,), {"scales": scales, "strides": STRIDES}, [*box_logits, scales])

    def moved(self, case: Case) -> dict[str, int]:
        points = case.batch * case.points
        logits, boxes = points * 4 * case.bins * case.itemsize, points * 4 * 4
        return both(logits + boxes, boxes + 2 * logits)


OPERATION = Integral()
