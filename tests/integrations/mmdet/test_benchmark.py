"""The benchmarks of mmdet: whoever takes part computes the same, but for the head that mmdet has no counterpart for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.candidates import BEST, Settings, gradients
from benchmarks.harness.probes import syncs
from benchmarks.integrations import AGAIN, integrations
from gflv2.integrations.mmdet import fused
from tests.integrations.mmdet.detectors import build

CPU = torch.device("cpu")


CASES = [(one, one.tiny()) for one in integrations("mmdet")]
CASES += [(one, one.tiny().but(model="rtmdet_tiny")) for one in integrations("mmdet")[:2]]
CASES += [(one, one.tiny().but(model="ld_r18_fpn")) for one in integrations("mmdet")[1:2]]
CASES += [(one, one.tiny().but(model="TaskAlignedAssigner")) for one in integrations("mmdet")[2:]]


@pytest.mark.parametrize("operation, case", CASES, ids=lambda one: getattr(one, "name", None) or one.model)
def test_candidates(operation, case):
    candidates = {one.name: one for one in operation.candidates(case, CPU, Settings())}
    assert list(candidates) == [BEST, "mmdet", AGAIN, *["GFLV2Head"][: case.model.startswith("gfl")]]
    assert type(build("GFL").bbox_head) is fused.MmdetGFLHead  # mmdet is left as it was
    inputs = operation.inputs(case, CPU, 0)
    results = {name: one(inputs) for name, one in candidates.items()}
    torch.testing.assert_close(results[BEST], results["mmdet"], rtol=1e-4, atol=1e-6)
    # Nothing of ours waits for the device; mmdet's loop does.
    waits = {name: syncs(lambda one=one: one(inputs), CPU) for name, one in candidates.items()}
    assert waits[BEST] == 0 < waits["mmdet"]
    if "GFLV2Head" in candidates:
        assert torch.isfinite(results["GFLV2Head"]) and waits["GFLV2Head"] == 0
    if inputs.leaves:
        ours, theirs = (gradients(operation, results[name], inputs) for name in (BEST, "mmdet"))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
