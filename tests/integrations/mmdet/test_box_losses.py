"""mmdet's CIoULoss and ours, beside the noise of mmdet's own."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.losses import CIoULoss
from mmdet.registry import MODELS
from torch import Tensor

from gflv2.integrations.mmdet import accelerate, modules, restore
from tests.integrations.noise import check, disturbed

PAIRS = 300
WEIGHT = torch.rand(PAIRS, generator=torch.Generator().manual_seed(3))


def pairs(unit: float = 40.0) -> tuple[Tensor, Tensor]:
    """Boxes near each other, apart, one within the other, and without an area."""
    draw = torch.Generator().manual_seed(0)
    first, size = unit * torch.rand(PAIRS, 2, generator=draw), unit * (0.05 + torch.rand(PAIRS, 2, generator=draw))
    target = torch.cat([first, first + size], 1)
    pred = target + 0.2 * unit * torch.randn(PAIRS, 4, generator=draw)
    pred[::5] = target[::5] + unit * torch.tensor([0.01, 0.02, -0.01, -0.015])
    pred[1::7] += 3 * unit
    pred[2::9, 2] = pred[2::9, 0]
    return pred, target


def result(loss: torch.nn.Module, pred: Tensor, target: Tensor, **options) -> tuple[Tensor, Tensor]:
    pred = pred.detach().requires_grad_()
    found = loss(pred, target, **options)
    return found.detach(), torch.autograd.grad(found.sum(), pred)[0]


@pytest.mark.parametrize("unit", [40.0, 1.0, 3000.0])
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({}, {"weight": WEIGHT, "avg_factor": 31.0}),
        ({"eps": 1e-7, "loss_weight": 2.0}, {"weight": WEIGHT[:, None].expand(-1, 4), "avg_factor": 31.0}),
        ({"reduction": "sum"}, {"weight": WEIGHT}),
        ({"eps": 1e-3}, {"reduction_override": "none"}),
        ({}, {"weight": 0 * WEIGHT, "avg_factor": 1.0}),
    ],
)
def test_within_the_noise_of_mmdets_own(settings, options, unit):
    pred, target = pairs(unit)
    stock = result(CIoULoss(**settings), pred, target, **options)
    noisy = result(CIoULoss(**settings), disturbed(pred), target, **options)
    ours = result(modules.CIoULoss(**settings), pred, target, **options)
    for index, what in enumerate(("loss", "gradient")):
        check([ours[index]], [stock[index]], [noisy[index]], name=lambda _, what=what: what)


def test_boxes_that_are_equal():
    """mmdet's own is no number where the IoU rounds to 1: 0 / 0."""
    _, target = pairs()
    found, gradient = result(modules.CIoULoss(), target, target)
    assert abs(float(found)) < 1e-6 and gradient.isfinite().all()


def test_accelerate_names_it():
    report = accelerate()
    (one,) = [one for one in report.replaced if one.by.endswith(".CIoULoss")]
    assert one.where[0] == "registry model" and MODELS.get("CIoULoss") is modules.CIoULoss
    loss = MODELS.build({"type": "CIoULoss", "loss_weight": 3.0})
    assert (loss.eps, loss.loss_weight, loss.reduction) == (1e-6, 3.0, "mean") and isinstance(loss, CIoULoss)
    restore()
    assert type(MODELS.build({"type": "CIoULoss"})) is CIoULoss
