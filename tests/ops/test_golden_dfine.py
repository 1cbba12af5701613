"""``fgl`` and ``ddf`` against what D-FINE's own losses give (`golden_dfine` wrote the figures)."""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import ddf, fgl
from tests.ops.under_test import backends_of, running
from tests.shared import SMALL, Golden

GOLDEN = Golden("dfine_losses", SMALL)


def check(loss: torch.Tensor, logits: torch.Tensor, name: str) -> None:
    """Against the package's float64 figures, whose weights and targets are float32."""
    (gradient,) = torch.autograd.grad(loss, logits)
    for found, wanted in ((loss.detach(), GOLDEN[f"loss_{name}"]), (gradient, GOLDEN[f"grad_{name}"])):
        atol = 2e-6 * float(wanted.abs().max())
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=2e-6, atol=atol)


@pytest.mark.parametrize("backend", backends_of("fgl", every_set=True))
def test_fgl(backend: str) -> None:
    rows = GOLDEN["matched"].bool()
    outside = GOLDEN["distances"] > GOLDEN["bins"][-1]
    assert outside.any() and (GOLDEN["distances"] < GOLDEN["bins"][0]).any() and outside.float().mean() < 0.5
    with running(backend) as device:
        logits = GOLDEN["logits"].float().to(device).requires_grad_()
        distances, bins, weight = (GOLDEN[name].float().to(device) for name in ("distances", "bins", "weight"))
        rows = rows.to(device)
        check(
            fgl(logits[rows], distances, bins, weight=weight[rows], avg_factor=GOLDEN.meta["avg_factor"]), logits, "fgl"
        )


@pytest.mark.parametrize("backend", backends_of("ddf", every_set=True))
def test_ddf(backend: str) -> None:
    with running(backend) as device:
        logits = GOLDEN["logits"].float().to(device).requires_grad_()
        teacher, weight = (GOLDEN[name].float().to(device) for name in ("teacher", "weight"))
        check(ddf(logits, teacher, GOLDEN["matched"].bool().to(device), weight=weight), logits, "ddf")
