"""``focal`` against what the packages' own losses give (`golden_focal` wrote the figures)."""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import focal
from tests.ops.under_test import backends_of, running
from tests.shared import SMALL, Golden

FIGURES = [
    (package, name)
    for package in ("mmdet", "transformers")
    for name in Golden(f"focal_{package}", SMALL).meta["settings"]
]


@pytest.mark.parametrize("backend", backends_of("focal", every_set=True))
@pytest.mark.parametrize(("package", "name"), FIGURES)
def test_figures_of_packages(package: str, name: str, backend: str) -> None:
    arrays = Golden(f"focal_{package}", SMALL)
    settings = arrays.meta["settings"][name]
    with running(backend) as device:
        pred = arrays["pred"].float().to(device).requires_grad_()
        labels, scores = arrays["label"].to(device), arrays["score"].float().to(device)
        target = labels if settings["kind"] == "sigmoid_focal" else (labels, scores)
        if name.startswith("VarifocalLoss"):
            target = (labels.where(scores > 0, -1), scores)  # as mmdet sees a score of 0
        loss = focal(pred, target, **settings, avg_factor=arrays.meta["avg_factor"])
        (gradient,) = torch.autograd.grad(loss, pred)
    for found, wanted in ((loss, arrays[f"loss_{name}"]), (gradient, arrays[f"grad_{name}"])):
        torch.testing.assert_close(
            found.detach().cpu().double(), wanted, rtol=2e-6, atol=1e-6 * float(wanted.abs().max())
        )
