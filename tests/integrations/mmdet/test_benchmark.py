"""The benchmarks of mmdet: whoever takes part computes the same, but for the head that mmdet has no counterpart for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.candidates import BEST, Settings, gradients
from benchmarks.harness.probes import syncs
from benchmarks.integrations import integrations
from gflv2.integrations.mmdet import fused
from tests.integrations.mmdet.detectors import build

CPU = torch.device("cpu")


@pytest.mark.parametrize("operation", integrations("mmdet"), ids=lambda operation: operation.name)
def test_candidates(operation):
    case = operation.tiny()
    candidates = {one.name: one for one in operation.candidates(case, CPU, Settings())}
    assert list(candidates) == [BEST, "mmdet", "GFLV2Head"]
    assert type(build("GFL").bbox_head) is fused.MmdetGFLHead  # mmdet is left as it was
    inputs = operation.inputs(case, CPU, 0)
    results = {name: one(inputs) for name, one in candidates.items()}
    torch.testing.assert_close(results[BEST], results["mmdet"], rtol=1e-4, atol=1e-6)
    assert torch.isfinite(results["GFLV2Head"])
    # Nothing of ours waits for the device; mmdet's loop does.
    waits = {name: syncs(lambda one=one: one(inputs), CPU) for name, one in candidates.items()}
    assert waits[BEST] == waits["GFLV2Head"] == 0 < waits["mmdet"]
    if inputs.leaves:
        ours, theirs = (gradients(operation, results[name], inputs) for name in (BEST, "mmdet"))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
