"""The benchmarks of an integration that changes classes for the whole process."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from benchmarks.harness.candidates import BEST, Settings, gradients
from benchmarks.integrations import AGAIN, Integration

CPU = torch.device("cpu")


def check_candidates(
    operation: Integration, integration: ModuleType, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without ours the same is computed, and only with ours the integration's function ``used`` is called."""
    calls = []
    original = getattr(integration, used)
    monkeypatch.setattr(integration, used, lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    case = operation.tiny()
    candidates = {one.name: one for one in operation.candidates(case, CPU, Settings())}
    assert list(candidates) == [BEST, operation.package, AGAIN]
    inputs = operation.inputs(case, CPU, 0)
    theirs = candidates[operation.package](inputs)
    assert not calls
    ours = candidates[BEST](inputs)
    assert calls
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if inputs.leaves:
        pair = (gradients(operation, result, inputs) for result in (ours, theirs))
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
