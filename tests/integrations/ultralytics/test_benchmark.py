"""The benchmarks of ultralytics: with and without ours, the same is computed."""

from __future__ import annotations

import pytest

from benchmarks.integrations import integrations
from gflv2.integrations.ultralytics import assigner, criterion, distributions
from tests.integrations.in_place import check_candidates

USED = {
    "ultralytics_decode": (distributions, "integral"),
    "ultralytics_assigner": (assigner, "task_aligned"),
    "ultralytics_task_aligned": (assigner, "task_aligned"),
}


@pytest.mark.parametrize("operation", integrations("ultralytics"), ids=lambda operation: operation.name)
def test_candidates(operation, monkeypatch):
    module, used = USED.get(operation.name, (criterion, "qfl"))
    check_candidates(operation, module, used, monkeypatch)
