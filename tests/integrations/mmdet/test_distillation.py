"""mmdet's LDHead with and without ours, and its distillation loss."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.losses import KnowledgeDistillationKLDivLoss as Mmdet
from mmdet.registry import MODELS
from torch import Tensor, nn

from gflv2.integrations.mmdet import accelerate, distillation, restore
from tests.integrations.mmdet.detectors import batch, build

LOSS = {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10}


@pytest.fixture(autouse=True)
def as_before():
    yield
    restore()


def losses(model: nn.Module, teacher: nn.Module, noise: float = 0.0) -> dict[str, Tensor]:
    """Losses, and gradients of the head, of a step of distillation."""
    images, samples = batch()
    images = images * (1 + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(3)))
    model.train().zero_grad()
    with torch.no_grad():
        soft = teacher.bbox_head(teacher.extract_feat(images))
    found = model.bbox_head.loss(model.extract_feat(images), soft, samples)
    found = {name: sum(value) for name, value in found.items()}
    sum(found.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.bbox_head.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in found.items()} | gradients


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - value).abs().max() / value.abs().max()) for name, value in wanted.items())


def test_a_step_of_ldhead():
    """Within what mmdet's own numbers change by when the images change by 1e-7."""
    model, teacher = build("GFL", type="LDHead", loss_ld=LOSS), build("GFL", weights=1)
    stock = losses(model, teacher)
    noisy = losses(model, teacher, noise=1e-7)
    report = accelerate(model)
    replaced = {one.by.rpartition(".")[2]: one.where for one in report.replaced}
    assert replaced["KnowledgeDistillationKLDivLoss"] == ("bbox_head.loss_ld",)
    assert [one.what for one in report.stayed] == ["bbox_head (LDHead)"]
    ours = losses(model, teacher)
    assert stock["loss_ld"] > 0 and furthest(ours, stock) <= 3 * furthest(noisy, stock) + 1e-5
    restore(model)
    assert type(model.bbox_head.loss_ld) is Mmdet


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss(weighted, reduction):
    draw = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(40, 17, generator=draw) for _ in range(2))
    options = {"weight": torch.rand(40, generator=draw) if weighted else None}
    if reduction == "mean":
        options["avg_factor"] = 4.0
    values, gradients = [], []
    accelerate()
    assert MODELS.get("KnowledgeDistillationKLDivLoss") is distillation.KnowledgeDistillationKLDivLoss
    for loss in (Mmdet(T=4, loss_weight=0.5), MODELS.build({**LOSS, "T": 4, "loss_weight": 0.5})):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, reduction_override=reduction, **options)
        values.append(value.detach())
        gradients += torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_rows_of_classes_are_mmdets():
    """80 columns are more than the operation takes."""
    student, teacher = torch.randn(2, 6, 80)
    assert torch.equal(distillation.KnowledgeDistillationKLDivLoss()(student, teacher), Mmdet()(student, teacher))
