"""``dfl``: the distribution focal loss of rows, four to a positive point."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs, peers
from benchmarks.eager.dfl import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import REG_MAX, Inputs, Operation, both, leaf
from gflv2 import ops
from gflv2.ops.reference.dfl import dfl as reference


class DistributionFocalLoss(Operation):
    name = "dfl"
    axes = ("rows", "reg_max", "dtype")
    curves = {"rows": (1024, 8192, 65536, 262144), "reg_max": REG_MAX}
    forms = FORMS
    peers = {"mmdet": peers.mmdet.dfl, "ultralytics": peers.ultralytics.dfl}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.dfl(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        return [Case(dtype="bfloat16", rows=65536), Case(rows=65536)] if device.type == "cuda" else [Case()]

    def curve_base(self, device: torch.device) -> Case:
        return self.bases(device)[0]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        kind = {"generator": inputs.generator(device, seed), "device": device}
        logits = leaf(torch.randn(case.rows, case.bins, **kind).to(case.torch_dtype))
        target = torch.rand(case.rows, **kind) * (case.reg_max - 0.1)
        weight = torch.rand(case.rows, **kind)
        return Inputs((logits, target), {"weight": weight, "avg_factor": 4.0 * case.rows}, [logits])

    def moved(self, case: Case) -> dict[str, int]:
        logits, targets = case.rows * case.bins * case.itemsize, case.rows * (4 + 4)
        return both(logits + targets, 2 * logits + targets)


OPERATION = DistributionFocalLoss()
