"""mmdet's LDHead with and without ours, beside the noise of mmdet's own, and its distillation loss."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.dense_heads import LDHead as MmdetLDHead
from mmdet.models.losses import KnowledgeDistillationKLDivLoss as Mmdet
from mmdet.registry import MODELS
from torch import Tensor, nn

from benchmarks.harness.probes import syncs
from gflv2.integrations.mmdet import accelerate, distillation, modules, restore
from tests.integrations.mmdet.detectors import CLASSES, batch, build
from tests.integrations.noise import check, disturbed

LOSS = {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10}


@pytest.fixture(autouse=True)
def as_before():
    yield
    restore()


def pair(**head) -> tuple[nn.Module, nn.Module]:
    """Student and teacher."""
    torch.manual_seed(0)  # of their backbones
    return build("GFL", type="LDHead", **{"loss_ld": LOSS, **head}), build("GFL", weights=1)


def step(
    model: nn.Module, teacher: nn.Module, *, noise: bool = False, boxes: tuple[int, ...] = (4, 2)
) -> dict[str, Tensor]:
    """Losses, and gradients of the head, of a step of distillation."""
    images, samples = batch(boxes)
    images = disturbed(images) if noise else images
    model.train().zero_grad()
    with torch.no_grad():
        soft = teacher.bbox_head(teacher.extract_feat(images))
    found = model.bbox_head.loss(model.extract_feat(images), soft, samples)
    found = {name: sum(value) for name, value in found.items()}
    sum(found.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.bbox_head.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in found.items()} | gradients


def compare(ours: dict[str, Tensor], stock: dict[str, Tensor], noisy: dict[str, Tensor]) -> None:
    """Each within what mmdet's own changes by when the images change by 1e-7."""
    assert list(ours) == list(stock)
    for name, wanted in stock.items():
        check([ours[name]], [wanted], [noisy[name]], name=lambda _: name)  # noqa: B023


@pytest.mark.parametrize("boxes", [(4, 2), (3, 0), (0, 0)])
def test_a_step_of_ldhead(boxes, monkeypatch):
    model, teacher = pair()
    stock, noisy = (step(model, teacher, noise=noise, boxes=boxes) for noise in (False, True))
    report = accelerate(model)
    replaced = {one.by.rpartition(".")[2]: one.where for one in report.replaced}
    assert replaced["KnowledgeDistillationKLDivLoss"] == ("bbox_head.loss_ld",)
    assert replaced["LDHead"] == ("bbox_head",) and not report.stayed
    monkeypatch.setattr(MmdetLDHead, "loss_by_feat", None)  # not to be called
    compare(step(model, teacher, boxes=boxes), stock, noisy)
    assert (stock["loss_ld"] > 0) == any(boxes)
    monkeypatch.undo()
    restore(model)
    assert type(model.bbox_head) is MmdetLDHead and type(model.bbox_head.loss_ld) is Mmdet


def test_the_smallest_weights():
    """The box losses are divided by Σw + 1e-6, not by 1 at least: scores near 0."""
    model, teacher = pair()
    model.bbox_head.gfl_cls.bias.data.fill_(-14.0)
    stock, noisy = (step(model, teacher, noise=noise) for noise in (False, True))
    accelerate(model)
    compare(step(model, teacher), stock, noisy)


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_box_whose_label_is_no_class(label):
    """The score of its points is mmdet's, background; they learn its sides, whatever it is."""
    model, teacher = pair()
    images, (sample, _) = batch((4, 2))
    features, soft = model.extract_feat(images[:1]), teacher.bbox_head(teacher.extract_feat(images[:1]))
    found = []
    for ours, given in ((False, label), (True, label), (True, 0)):
        if ours:
            accelerate(model)
        sample.gt_instances.labels[1] = given
        found.append({name: sum(value) for name, value in model.bbox_head.loss(features, soft, [sample]).items()})
    stock, bad, good = found
    torch.testing.assert_close(bad["loss_cls"], stock["loss_cls"])
    for name in ("loss_bbox", "loss_dfl", "loss_ld"):
        assert bad[name] == good[name] != stock[name]


def test_nothing_waits_for_the_device():
    accelerate()
    model, teacher = pair()
    images, samples = batch()
    features, soft = model.extract_feat(images), teacher.bbox_head(teacher.extract_feat(images))
    assert syncs(lambda: model.bbox_head.loss(features, soft, samples), torch.device("cpu")) == 0


def test_ten_steps():
    """The student's own loop; losses step by step, and all weights behind it."""
    runs = []
    for noise, ours in ((False, False), (True, False), (False, True)):
        model, teacher = pair()
        if ours:
            accelerate(model)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        curve = []
        for _ in range(10):
            found = step(model, teacher, noise=noise)
            curve.append(torch.stack([found[name] for name in ("loss_cls", "loss_bbox", "loss_dfl", "loss_ld")]))
            optimiser.step()
        runs.append([torch.stack(curve), torch.nn.utils.parameters_to_vector(model.parameters()).detach()])
    stock, noisy, ours = runs
    assert stock[0][-1].sum() < stock[0][0].sum()
    check([ours[0]], [stock[0]], [noisy[0]])
    check([ours[1]], [stock[1]], [noisy[1]])


class Derived(Mmdet):
    def forward(self, *args, **kwargs):
        return 10 * super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    "unusual",
    [
        {"loss_ld": {**LOSS, "type": Derived}},
        {"loss_bbox": {"type": "DIoULoss", "loss_weight": 2.0}},
    ],
)
def test_what_the_operations_lack_is_mmdets(unusual):
    """Our single losses in mmdet's own loop."""
    model, teacher = pair(**unusual)
    stock, noisy = (step(model, teacher, noise=noise) for noise in (False, True))
    (line,) = [one for one in accelerate(model).stayed if one.what == "bbox_head (LDHead)"]
    assert line.why.startswith("its losses one by one, in mmdet's loop: loss_")
    assert not modules.covered(model.bbox_head, distillation.check_parts)
    compare(step(model, teacher), stock, noisy)


def test_a_head_derived_from_it_is_named_after_it():
    model, _ = pair()
    model.bbox_head.__class__ = type("Own", (MmdetLDHead,), {})
    (line,) = [one for one in accelerate(model).stayed if one.what == "bbox_head (Own)"]
    assert line.why == "derived from LDHead: it may compute something else"


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
