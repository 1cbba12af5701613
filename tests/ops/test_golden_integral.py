"""`integral` against the authors' Integral layer."""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import integral
from tests.ops.under_test import backends_of, running
from tests.shared import golden, golden_cases


@pytest.mark.parametrize("backend", backends_of("integral", every_set=True))
@pytest.mark.parametrize("case", golden_cases("integral_*"))
def test_distances_and_gradient(case: str, backend: str) -> None:
    arrays = golden(case)
    with running(backend) as device:
        logits = arrays["logits"].to(device).requires_grad_()
        distances = integral(logits.unflatten(1, (4, -1)))
        (distances * arrays["cot"].to(device)).sum().backward()
    arrays.compare("dist", distances)
    arrays.compare("grad_logits", logits.grad)


@pytest.mark.parametrize("backend", backends_of("integral", every_set=True))
@pytest.mark.parametrize("case", golden_cases("integral_*"))
def test_distances_in_float64(case: str, backend: str) -> None:
    arrays = golden(case)
    if backend not in ("reference", "cpu"):
        pytest.skip("float64 runs on cpu and reference only")
    with running(backend) as device:
        distances = integral(arrays["logits"].double().to(device).unflatten(1, (4, -1)))
    torch.testing.assert_close(distances.cpu(), arrays["dist_f64"], rtol=1e-13, atol=1e-13)
