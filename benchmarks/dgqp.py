"""``dgqp``: from the box logits of all levels to the quality logits."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.eager.dgqp import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, REG_MAX, SIZES, Inputs, Operation, both
from gflv2 import ops
from gflv2.ops.reference.dgqp import dgqp as reference


class Quality(Operation):
    name = "dgqp"
    axes = ("batch", "size", "reg_max", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "reg_max": REG_MAX}
    forms = FORMS

    def run(self, *args, **kwargs) -> Tensor:
        return ops.dgqp(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        draw = inputs.generator(device, seed)
        box_logits, scales = inputs.box_levels(case, draw)
        weights = list(inputs.predictor(draw)[:4])
        kwargs = {"scales": scales, "topk": inputs.TOPK}
        return Inputs((box_logits, *weights), kwargs, [*box_logits, scales, *weights])

    def moved(self, case: Case) -> dict[str, int]:
        points = case.batch * case.points
        logits, quality = points * 4 * case.bins * case.itemsize, points * 4
        return both(logits + quality, quality + 2 * logits)


OPERATION = Quality()
