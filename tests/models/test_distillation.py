"""Localisation distillation in the head: the losses by hand, their gradient, and a part of a batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gflv2.config import DistillConfig
from gflv2.models.distillation import Teaching
from gflv2.models.gfl_head import GFLHead
from gflv2.nn.valuable_region import valuable_region
from gflv2.ops import normalisers

SHAPES = [(8, 8), (4, 4)]


def heads() -> tuple[GFLHead, GFLHead]:
    torch.manual_seed(0)
    made = [
        GFLHead(3, 16, feat_channels=16, stacked_convs=1, gn_groups=4, strides=(8, 16), reg_max=7) for _ in range(2)
    ]
    for head in made:
        torch.nn.init.normal_(head.gfl_reg.weight, std=0.5)
    return made[0], made[1]


def batch(head: GFLHead, teacher: GFLHead, **settings):
    torch.manual_seed(1)
    features = [torch.randn(2, 16, *shape) for shape in SHAPES]
    boxes = [torch.tensor([[4.0, 4.0, 40.0, 50.0], [20.0, 10.0, 60.0, 30.0]]), torch.tensor([[8.0, 8.0, 30.0, 30.0]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    output = head(features)
    with torch.no_grad():
        taught = teacher(features)
    teaching = Teaching(taught.box_logits, taught.scales * 1.5, DistillConfig(**settings))
    return output, head.assign(output, boxes, labels), boxes, teaching


def kl(output, teaching, temperature: float) -> torch.Tensor:
    """(B, A) mean of the four sides, as mmdet writes it."""

    def rows(levels, scales):
        flat = [(level * s).flatten(2).transpose(1, 2) for level, s in zip(levels, scales, strict=True)]
        return torch.cat(flat, 1).unflatten(2, (4, -1)) / temperature

    mine, theirs = rows(output.box_logits, output.scales), rows(teaching.box_logits, teaching.scales)
    found = F.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="none").mean(-1)
    return found.mean(-1) * temperature**2


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "loss_weight": 0.5, "region_weight": 1.0}])
def test_the_losses_are_weighted_means_of_the_divergence(settings) -> None:
    head, teacher = heads()
    output, assignment, boxes, teaching = batch(head, teacher, **settings)
    losses = head.losses(output, assignment, boxes, teaching=teaching)
    plain = head.losses(output, assignment, boxes)
    assert {name: losses[name] for name in plain} == plain
    options, targets = teaching.settings, head.targets(output, assignment, boxes)
    total = options.loss_weight * kl(output, teaching, options.temperature)
    weight = normalisers(targets.sums, weight_floor=head.weight_floor)[0]
    region = valuable_region(assignment, boxes, SHAPES, (8, 16))
    torch.testing.assert_close(losses["loss_ld"], (targets.weights * total).sum() / weight)
    torch.testing.assert_close(losses["loss_ld_region"], options.region_weight * (region * total).sum() / weight)
    assert losses["loss_ld"] > 0 and losses["loss_ld_region"] > 0


def test_the_gradient_goes_to_the_student_and_vanishes_where_it_agrees() -> None:
    head, teacher = heads()
    output, assignment, boxes, teaching = batch(head, teacher)
    losses = head.losses(output, assignment, boxes, teaching=teaching)
    (losses["loss_ld"] + losses["loss_ld_region"]).backward()
    assert head.gfl_reg.weight.grad.norm() > 0 and head.scales[0].scale.grad.abs() > 0
    assert head.gfl_cls.weight.grad is None and teacher.gfl_reg.weight.grad is None
    same = teaching._replace(box_logits=[level.detach() for level in output.box_logits], scales=output.scales.detach())
    agreed = head.losses(head([torch.zeros(2, 16, *s) for s in SHAPES]), assignment, boxes)
    assert set(agreed) == {"loss_qfl", "loss_giou", "loss_dfl"}
    agreed = head.losses(output, assignment, boxes, teaching=same)
    assert float(agreed["loss_ld"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(agreed["loss_ld_region"].detach()) == pytest.approx(0, abs=1e-6)


def test_positive_points_only() -> None:
    head, teacher = heads()
    output, assignment, boxes, teaching = batch(head, teacher, region_weight=0.0)
    losses = head.losses(output, assignment, boxes, teaching=teaching)
    assert set(losses) == {"loss_qfl", "loss_giou", "loss_dfl", "loss_ld"}


def test_an_image_without_boxes_teaches_nothing() -> None:
    head, teacher = heads()
    output, _, _, teaching = batch(head, teacher)
    none = [torch.zeros(0, 4)] * 2
    assignment = head.assign(output, none, [torch.zeros(0, dtype=torch.int64)] * 2)
    losses = head.losses(output, assignment, none, teaching=teaching)
    assert float(losses["loss_ld"].detach()) == 0 and float(losses["loss_ld_region"].detach()) == 0
