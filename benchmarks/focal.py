"""``focal``: sigmoid focal, varifocal and matchability-aware loss and IoU-aware cross-entropy, on rows of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs, peers
from benchmarks.eager.focal import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, CLASSES, SIZES, Inputs, Operation, both, leaf
from gflv2 import ops, use_backend
from gflv2.ops.focal import KINDS

POSITIVE = 0.01  # share of the points


def kind_of(case: Case) -> str:
    """The form of a case is the kind; that of another operation stands for varifocal loss."""
    return case.form if case.form in KINDS else "varifocal"


class Focal(Operation):
    name = "focal"
    axes = ("form", "batch", "size", "classes", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "classes": CLASSES}
    forms = FORMS
    static_form = "gathered"
    peers = {"mmdet": peers.mmdet.focal, "torchvision": peers.torchvision.sigmoid_focal}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.focal(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        with use_backend("reference"):
            return ops.focal(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        cases = [case.but(form="varifocal") for case in super().bases(device)]
        return [*cases, *(cases[0].but(form=kind) for kind in KINDS if kind != "varifocal")]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        draw = inputs.generator(device, seed)
        kind = {"generator": draw, "device": device}
        rows = case.batch * case.points
        scores = torch.rand(rows, **kind)
        labels = torch.randint(0, case.classes, (rows,), **kind)
        # Background is C, as mmdet has it.
        labels = torch.where(torch.rand(rows, **kind) < POSITIVE, labels, case.classes)
        logits = leaf((torch.randn(rows, case.classes, **kind) - 4.6).to(case.torch_dtype))
        factor = (labels < case.classes).sum().clamp(min=1).float()
        target = labels if kind_of(case) == "sigmoid_focal" else (labels, scores)
        options = {"kind": kind_of(case), "weight": torch.ones(rows, device=device), "avg_factor": factor}
        return Inputs((logits, target), options, [logits])

    def moved(self, case: Case) -> dict[str, int]:
        points = case.batch * case.points
        logits = points * case.classes * case.itemsize
        targets = points * (8 + 4 + 4 * (kind_of(case) != "sigmoid_focal"))  # label, weight, score
        return both(logits + targets, 2 * logits + targets)


OPERATION = Focal()
