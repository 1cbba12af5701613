"""The benchmarks of D-FINE: with and without ours, the same is computed."""

from __future__ import annotations

import pytest

from benchmarks.integrations import integrations
from gflv2.integrations import dfine
from tests.integrations.in_place import check_candidates


@pytest.mark.parametrize("operation", integrations("dfine"), ids=lambda operation: operation.name)
def test_candidates(operation, monkeypatch):
    check_candidates(operation, dfine, "expected_distances", monkeypatch)
