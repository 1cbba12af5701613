"""``ddf``: D-FINE's distillation loss of the rows of all queries, four to a query, of which one in ten is matched."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.distribution_kl import DistributionKL
from benchmarks.eager.ddf import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, leaf
from gflv2 import ops
from gflv2.ops.reference.ddf import ddf as reference


class DecoupledDistillation(DistributionKL):
    name = "ddf"
    axes = ("rows", "dtype")
    curves = {"rows": (1024, 8192, 65536)}
    forms = FORMS
    peers = {}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.ddf(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        kind = {"generator": inputs.generator(device, seed), "device": device}
        student, teacher = (torch.randn(case.rows, case.bins, **kind).to(case.torch_dtype) for _ in range(2))
        logits, matched = leaf(student), torch.rand(case.rows, **kind) < 0.1
        return Inputs((logits, teacher, matched), {"weight": torch.rand(case.rows, **kind)}, [logits])


OPERATION = DecoupledDistillation()
