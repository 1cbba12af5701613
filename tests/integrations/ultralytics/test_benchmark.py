"""The benchmarks of ultralytics: with and without ours, the same is computed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.candidates import BEST, Settings, gradients
from benchmarks.integrations import integrations
from gflv2.integrations import ultralytics

CPU = torch.device("cpu")


@pytest.mark.parametrize("operation", integrations("ultralytics"), ids=lambda operation: operation.name)
def test_candidates(operation, monkeypatch):
    calls = []
    integral = ultralytics.integral
    monkeypatch.setattr(ultralytics, "integral", lambda *args, **kwargs: calls.append(1) or integral(*args, **kwargs))
    case = operation.tiny()
    candidates = {one.name: one for one in operation.candidates(case, CPU, Settings())}
    assert list(candidates) == [BEST, "ultralytics"]
    inputs = operation.inputs(case, CPU, 0)
    theirs = candidates["ultralytics"](inputs)
    assert not calls
    ours = candidates[BEST](inputs)
    assert calls
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if inputs.leaves:
        pair = (gradients(operation, result, inputs) for result in (ours, theirs))
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
