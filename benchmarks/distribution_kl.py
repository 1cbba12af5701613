"""``distribution_kl``: how far a student's distributions are from a teacher's, rows, four to a point."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs, peers
from benchmarks.eager.distribution_kl import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import REG_MAX, Inputs, Operation, both, leaf
from gflv2 import ops
from gflv2.ops.reference.distribution_kl import distribution_kl as reference


class DistributionKL(Operation):
    name = "distribution_kl"
    axes = ("rows", "reg_max", "dtype")
    curves = {"rows": (1024, 8192, 65536, 262144), "reg_max": REG_MAX}
    forms = FORMS
    peers = {"mmdet": peers.mmdet.distribution_kl}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.distribution_kl(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def bases(self, device: torch.device) -> list[Case]:
        return [Case(dtype="bfloat16", rows=65536), Case(rows=65536)] if device.type == "cuda" else [Case()]

    def curve_base(self, device: torch.device) -> Case:
        return self.bases(device)[0]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        kind = {"generator": inputs.generator(device, seed), "device": device}
        student, teacher = (torch.randn(case.rows, case.bins, **kind).to(case.torch_dtype) for _ in range(2))
        logits = leaf(student)
        weight = torch.rand(case.rows, **kind)
        options = {"temperature": 10.0, "weight": weight, "avg_factor": 4.0 * case.rows}
        return Inputs((logits, teacher), options, [logits])

    def moved(self, case: Case) -> dict[str, int]:
        logits, weights = case.rows * case.bins * case.itemsize, case.rows * 4
        return both(2 * logits + weights, 3 * logits + weights)


OPERATION = DistributionKL()
