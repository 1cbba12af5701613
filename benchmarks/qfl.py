"""``qfl``: the quality focal loss, in the form class × quality on levels, and in the form of one logit on rows."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs, peers
from benchmarks.eager.qfl import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, CLASSES, SIZES, Inputs, Operation, both, leaf
from gflv2 import ops
from gflv2.ops.reference.qfl import qfl as reference

POSITIVE = 0.01  # share of the points


class QualityFocalLoss(Operation):
    name = "qfl"
    axes = ("form", "batch", "size", "classes", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "classes": CLASSES}
    forms = FORMS
    static_form = "gathered"
    peers = {"mmdet": peers.mmdet.qfl, "torchvision focal loss": peers.torchvision.sigmoid_focal_loss}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.qfl(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        cases = super().bases(device)
        return [*cases, cases[0].but(form="logits")]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        draw = inputs.generator(device, seed)
        kind = {"generator": draw, "device": device}
        shape = (case.batch, case.points)
        scores = torch.rand(shape, **kind)
        labels = torch.randint(0, case.classes, shape, **kind)
        positive = torch.rand(shape, **kind) < POSITIVE
        labels, scores = torch.where(positive, labels, -1), torch.where(positive, scores, 0.0)
        factor = positive.sum().clamp(min=1).float()
        weight = torch.ones(shape, device=device)
        if case.form == "joint":
            classes = inputs.levels(case, case.classes, draw, mean=-4.6)
            quality = leaf(torch.randn(shape, **kind))
            kwargs = {"class_logits": classes, "quality_logits": quality, "weight": weight, "avg_factor": factor}
            return Inputs(((labels, scores),), kwargs, [*classes, quality])
        rows = torch.randn(labels.numel(), case.classes, **kind) - 4.6
        logits = leaf(rows.to(case.torch_dtype))
        kwargs = {"logits": logits, "weight": weight.flatten(), "avg_factor": factor}
        return Inputs(((labels.flatten(), scores.flatten()),), kwargs, [logits])

    def moved(self, case: Case) -> dict[str, int]:
        points = case.batch * case.points
        logits = points * case.classes * case.itemsize
        quality = points * 4 * (case.form == "joint")
        targets = points * (8 + 4 + 4)  # label, score, weight
        return both(logits + quality + targets, 2 * logits + 2 * quality + targets)


OPERATION = QualityFocalLoss()
