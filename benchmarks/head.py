"""The training head: assignment, targets and the three losses, to one number, with all gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import inputs, peers
from benchmarks.eager.head import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, BOXES, CLASSES, REG_MAX, SIZES, Inputs, Operation, both
from gflv2 import ops
from gflv2.ops.reference import atss as reference_atss
from gflv2.ops.reference import gfl_loss as reference_loss


def head_loss(
    atss: Any, gfl_targets: Any, gfl_loss: Any, class_logits, box_logits, boxes, labels, **options: Any
) -> Tensor:
    """The steps of the head with the given operations."""
    shapes = [tuple(level.shape[2:]) for level in class_logits]
    with torch.no_grad():
        found = atss(boxes, labels, shapes, options["strides"])
    targets = gfl_targets(class_logits, box_logits, found, boxes, **options)
    losses = gfl_loss(class_logits, box_logits, targets, ops.normalisers(targets.sums), **options)
    return losses.qfl + losses.giou + losses.dfl


class Head(Operation):
    name = "head"
    axes = ("batch", "size", "classes", "reg_max", "boxes", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "boxes": BOXES, "classes": CLASSES, "reg_max": REG_MAX}
    forms = FORMS
    static_form = "static"
    peers = {"mmdet (GFLV1)": peers.mmdet.head}

    def run(self, *args, **kwargs) -> Tensor:
        return head_loss(ops.atss, ops.gfl_targets, ops.gfl_loss, *args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        steps = (reference_atss.atss, reference_loss.gfl_targets, reference_loss.gfl_loss)
        return head_loss(*steps, *args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        cases = super().bases(device)
        return [*cases, cases[0].but(boxes=100)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        head = inputs.head(case, device, seed)
        args = (head.class_logits, head.box_logits, *inputs.boxes(case, device, seed))
        return Inputs(args, head.arguments, head.leaves)

    def calls(self, inputs: Inputs) -> list:
        class_logits, box_logits, boxes, labels = inputs.args
        shapes = [tuple(level.shape[2:]) for level in class_logits]
        assign = (boxes, labels, shapes, inputs.kwargs["strides"])
        found = reference_atss.atss(*assign)
        prepare = (class_logits, box_logits, found, boxes)
        targets = reference_loss.gfl_targets(*prepare, **inputs.kwargs)
        losses = (class_logits, box_logits, targets, targets.sums.clamp(min=1))
        return [("atss", assign, {}), ("gfl_targets", prepare, inputs.kwargs), ("gfl_loss", losses, inputs.kwargs)]

    def moved(self, case: Case) -> dict[str, int]:
        """Forward reads all logits once; backward reads them again and writes the gradients. Nothing in between."""
        points = case.batch * case.points
        logits = points * (case.classes + 4 * case.bins) * case.itemsize
        return both(logits + points * 4, 2 * logits + points * 4)  # 4 bytes: which box a point learns


OPERATION = Head()
