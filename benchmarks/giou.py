"""``giou``: the GIoU loss of aligned boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs, peers
from benchmarks.eager.giou import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, Operation, both, leaf
from gflv2 import ops
from gflv2.ops.reference.giou import giou as reference


class GIoU(Operation):
    name = "giou"
    axes = ("rows",)
    curves = {"rows": (1024, 8192, 65536, 262144)}
    forms = FORMS
    peers = {"mmdet": peers.mmdet.giou, "torchvision": peers.torchvision.giou}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.giou(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        return [Case(rows=65536 if device.type == "cuda" else 8192)]

    def curve_base(self, device: torch.device) -> Case:
        return self.bases(device)[0]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        kind = {"generator": inputs.generator(device, seed), "device": device}
        corner = torch.rand(case.rows, 2, **kind) * 100
        target = torch.cat([corner, corner + 1 + 30 * torch.rand(case.rows, 2, **kind)], dim=1)
        pred = leaf(target + torch.randn(case.rows, 4, **kind))
        weight = torch.rand(case.rows, **kind)
        return Inputs((pred, target), {"weight": weight, "avg_factor": float(case.rows)}, [pred])

    def moved(self, case: Case) -> dict[str, int]:
        boxes, weight = case.rows * 16, case.rows * 4
        return both(2 * boxes + weight, 3 * boxes + weight)


OPERATION = GIoU()
