"""The benchmarks of ultralytics: with and without ours, the same is computed."""

from __future__ import annotations

import pytest

from benchmarks.integrations import integrations
from gflv2.integrations import ultralytics
from tests.integrations.in_place import check_candidates


@pytest.mark.parametrize("operation", integrations("ultralytics"), ids=lambda operation: operation.name)
def test_candidates(operation, monkeypatch):
    check_candidates(operation, ultralytics, "integral", monkeypatch)
