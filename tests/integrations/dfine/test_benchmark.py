"""The benchmarks of D-FINE: with and without ours, the same is computed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.candidates import BEST, Settings, gradients
from benchmarks.integrations import integrations
from gflv2.integrations import dfine

CPU = torch.device("cpu")


@pytest.mark.parametrize("operation", integrations("dfine"), ids=lambda operation: operation.name)
def test_candidates(operation, monkeypatch):
    calls = []
    distances = dfine.expected_distances
    monkeypatch.setattr(
        dfine, "expected_distances", lambda *args, **kwargs: calls.append(1) or distances(*args, **kwargs)
    )
    case = operation.tiny()
    candidates = {one.name: one for one in operation.candidates(case, CPU, Settings())}
    assert list(candidates) == [BEST, "dfine"]
    inputs = operation.inputs(case, CPU, 0)
    theirs = candidates["dfine"](inputs)
    assert not calls
    ours = candidates[BEST](inputs)
    assert calls
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if inputs.leaves:
        pair = (gradients(operation, result, inputs) for result in (ours, theirs))
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
