"""The benchmarks of D-FINE: with and without ours, the same is computed."""

from __future__ import annotations

import pytest

from benchmarks.integrations import integrations
from gflv2.integrations import dfine, dfine_losses
from tests.integrations.in_place import check_candidates


@pytest.mark.parametrize("operation", integrations("dfine"), ids=lambda operation: operation.name)
def test_candidates(operation, monkeypatch):
    used = (dfine_losses, "ddf") if operation.name == "dfine_losses" else (dfine, "expected_distances")
    check_candidates(operation, *used, monkeypatch)
