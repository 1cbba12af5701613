"""The same training with the kernels as with their definition: the loss curves of 30 steps from the same seed."""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import backends
from tests.engine.captured import assert_same_curves


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_thirty_steps(autocast: torch.dtype | None) -> None:
    reason = backends.unavailable("cpu", "cpu")
    if reason is not None:
        pytest.skip(reason)
    assert_same_curves("cpu", "cpu", autocast)
