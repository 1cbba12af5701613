"""The class losses of transformers' D-FINE and DEIMv2, with and without ours, beside the noise of the package's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.loss import loss_d_fine, loss_deimv2

from gflv2.integrations import dfine

BATCH, QUERIES, CLASSES, BOXES = 2, 50, 7, 6.0
LOSSES = {
    "vfl": (loss_d_fine.DFineLoss, "loss_labels_vfl", {"alpha": 0.75, "gamma": 2.0}),
    "mal": (loss_deimv2.Deimv2Loss, "loss_labels_mal", {"mal_alpha": None, "gamma": 1.5}),
    "mal with alpha": (loss_deimv2.Deimv2Loss, "loss_labels_mal", {"mal_alpha": 0.3, "gamma": 2.0}),
    "vfl of DEIMv2": (loss_deimv2.Deimv2Loss, "loss_labels_vfl", {"alpha": 0.2, "gamma": 1.5}),
}


@pytest.fixture(autouse=True)
def as_before():
    yield
    dfine.restore()


def inputs() -> tuple[dict[str, Tensor], list[dict[str, Tensor]], list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    boxes = 0.2 + 0.4 * torch.rand(BATCH, QUERIES, 4, generator=draw)
    outputs = {"logits": 2 * torch.randn(BATCH, QUERIES, CLASSES, generator=draw) - 2, "pred_boxes": boxes}
    matches = [(torch.tensor([3, 17, 40]), torch.tensor([1, 0, 2])), (torch.tensor([], dtype=torch.long),) * 2]
    labels = [torch.tensor([0, 6, 2]), torch.tensor([], dtype=torch.long)]
    wanted = [(boxes[0, [17, 3, 40]] + 0.05 * torch.randn(3, 4, generator=draw)).clamp(min=0.05), torch.zeros(0, 4)]
    targets = [{"class_labels": names, "boxes": sides} for names, sides in zip(labels, wanted, strict=True)]
    return outputs, targets, matches


def result(name: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the logits."""
    kind, method, attributes = LOSSES[name]
    criterion = SimpleNamespace(num_classes=CLASSES, **attributes)
    criterion._get_source_permutation_idx = kind._get_source_permutation_idx.__get__(criterion)
    outputs, targets, matches = inputs()
    outputs["logits"] = (outputs["logits"] * scale).requires_grad_()
    (loss,) = getattr(kind, method)(criterion, outputs, targets, matches, BOXES).values()
    return loss.detach(), torch.autograd.grad(loss, outputs["logits"])[0]


def off(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> list[float]:
    """Largest difference of loss and gradient, by the largest value."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("name", LOSSES)
def test_within_the_noise_of_the_packages_own(name):
    kind, method, _ = LOSSES[name]
    before = getattr(kind, method)
    stock, noise = result(name), off(result(name, 1 + 1e-7), result(name))
    dfine.accelerate()
    assert getattr(kind, method) is not before
    found = off(result(name), stock)
    assert all(ours <= max(4 * theirs, 1e-6) for ours, theirs in zip(found, noise, strict=True)), (found, noise)
    dfine.restore()
    assert getattr(kind, method) is before


def test_boxes_without_an_area_cost_a_number():
    """The package's IoU of two of them is 0/0."""
    dfine.accelerate()
    criterion = SimpleNamespace(num_classes=CLASSES, alpha=0.75, gamma=2.0)
    criterion._get_source_permutation_idx = loss_d_fine.DFineLoss._get_source_permutation_idx.__get__(criterion)
    outputs, targets, matches = inputs()
    outputs["pred_boxes"][0, 3, 2:] = 0
    targets[0]["boxes"][1, 2:] = 0
    assert loss_d_fine.DFineLoss.loss_labels_vfl(criterion, outputs, targets, matches, BOXES)["loss_vfl"].isfinite()


def test_the_report_names_them():
    answer = dfine.accelerate()
    names = [one.what.rpartition(".")[2] for one in answer.replaced]
    assert names.count("loss_labels_vfl") == 2 and names.count("loss_labels_mal") == 1
    assert not any("varifocal" in str(one) or "criterion" in str(one) for one in answer.stayed)
