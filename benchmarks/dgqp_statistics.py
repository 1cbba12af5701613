"""``dgqp_statistics``: the four largest probabilities of each side and their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.eager.dgqp_statistics import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, REG_MAX, SIZES, Inputs, Operation, both
from gflv2 import ops
from gflv2.ops.reference.dgqp import dgqp_statistics as reference


class Statistics(Operation):
    name = "dgqp_statistics"
    axes = ("batch", "size", "reg_max", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "reg_max": REG_MAX}
    forms = FORMS

    def run(self, *args, **kwargs) -> Tensor:
        return ops.dgqp_statistics(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        box_logits, scales = inputs.box_levels(case, inputs.generator(device, seed))
        return Inputs((box_logits,), {"scales": scales, "topk": inputs.TOPK}, [*box_logits, scales])

    def moved(self, case: Case) -> dict[str, int]:
        points = case.batch * case.points
        logits, statistics = points * 4 * case.bins * case.itemsize, points * 4 * (inputs.TOPK + 1) * 4
        return both(logits + statistics, statistics + 2 * logits)


OPERATION = Statistics()
