"""``fgl``: D-FINE's fine-grained localisation loss of rows, four to a matched query, of 33 bins."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.dfl import DistributionFocalLoss
from benchmarks.eager.fgl import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, leaf
from gflv2 import ops
from gflv2.ops.reference.fgl import fgl as reference


class FineGrainedLocalisation(DistributionFocalLoss):
    name = "fgl"
    axes = ("rows", "dtype")
    curves = {"rows": (1024, 8192, 65536)}
    forms = FORMS
    peers = {}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.fgl(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        kind = {"generator": inputs.generator(device, seed), "device": device}
        logits = leaf(torch.randn(case.rows, case.bins, **kind).to(case.torch_dtype))
        # From the middle to both sides the steps grow, and a tenth of the targets lies outside.
        middle = (case.bins - 1) / 2
        places = torch.arange(case.bins, device=device) - middle
        bins = places.sign() * (1.08 ** places.abs() - 1)
        target = (2 * torch.rand(case.rows, **kind) - 1) * 1.1 * bins[-1]
        weight = torch.rand(case.rows, **kind)
        return Inputs((logits, target, bins), {"weight": weight, "avg_factor": 4.0 * case.rows}, [logits])


OPERATION = FineGrainedLocalisation()
