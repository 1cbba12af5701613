"""The box coding and the centerness of the ATSS head, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from gflv2.models.atss_head import ATSSHead, centerness, deltas_to_boxes
from gflv2.models.dense_head import HeadOutput


def test_deltas():
    points, sides = torch.tensor([[100.0, 50.0], [0.0, 0.0]]), torch.tensor([64.0, 128.0])
    zero = deltas_to_boxes(torch.zeros(2, 4), points, sides)
    assert zero.tolist() == [[68, 18, 132, 82], [-64, -64, 64, 64]]
    # dx = 5 units of 0.1 moves by half a side, dw = log(2)/0.2 doubles the width.
    moved = deltas_to_boxes(torch.tensor([[5.0, 0, math.log(2) / 0.2, 0]]), points[:1], sides[:1])
    torch.testing.assert_close(moved, torch.tensor([[68.0, 18, 196, 82]]))
    assert torch.isfinite(deltas_to_boxes(torch.full((1, 4), 1e4), points[:1], sides[:1])).all()


def test_centerness():
    points = torch.tensor([[50.0, 50.0], [25.0, 50.0], [150.0, 50.0], [0.0, 50.0]])
    boxes = torch.tensor([[0.0, 0, 100, 100]]).expand(4, 4)
    torch.testing.assert_close(centerness(points, boxes), torch.tensor([1.0, math.sqrt(1 / 3), 0.0, 0.0]))
    assert centerness(points[:1], torch.tensor([[50.0, 50, 50, 50]])).item() == 0


def test_losses_by_hand():
    """One level of 3×3 points, one box, predictions that fit it exactly at every point."""
    head = ATSSHead(2, 4, feat_channels=4, stacked_convs=0, strides=(8,), gn_groups=1)
    box = torch.tensor([[-24.0, -24, 40, 40]])  # the anchor of the middle point
    deltas = torch.zeros(1, 4, 3, 3)
    deltas[0, 0] = torch.tensor([8.0, 0, -8]) / 64 / 0.1
    deltas[0, 1] = torch.tensor([[8.0], [0], [-8]]) / 64 / 0.1
    logits = torch.zeros(1, 2, 3, 3)
    output = HeadOutput([logits], [deltas], torch.ones(1), quality_logits=torch.zeros(1, 9))
    torch.testing.assert_close(head.boxes(output), box.expand(1, 9, 4))
    losses = head.loss(output, [box], [torch.tensor([1])])
    positive = int((head.assign(output, [box], [torch.tensor([1])], None, None).index > 0).sum())
    assert 0 < positive < 9
    # p = 1/2 everywhere: focal = α_t·(1/2)²·log 2, α = 1/4 at the positive entries.
    focal = math.log(2) / 4 * (0.25 * positive + 0.75 * (18 - positive)) / positive
    assert losses["loss_focal"].item() == pytest.approx(focal, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_centerness"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_losses_point_by_point():
    """Random predictions; the box and centerness losses written as loops over the positive points."""
    torch.manual_seed(3)
    head = ATSSHead(3, 4, feat_channels=4, stacked_convs=0, strides=(8, 16), gn_groups=1, loss_weights=(1.0, 2.0, 0.5))
    shapes = [(8, 8), (4, 4)]
    logits = [torch.randn(2, 3, h, w) for h, w in shapes]
    deltas = [torch.randn(2, 4, h, w) for h, w in shapes]
    quality = torch.randn(2, 80)
    output = HeadOutput(logits, deltas, torch.tensor([1.5, 0.7]), quality_logits=quality)
    boxes = [torch.tensor([[4.0, 6, 50, 40], [20, 10, 60, 62]]), torch.tensor([[0.0, 0, 60, 46]])]
    labels = [torch.tensor([2, 0]), torch.tensor([1])]
    losses = head.loss(output, boxes, labels, [(64, 64), (48, 64)])

    assignment = head.assign(output, boxes, labels, [(64, 64), (48, 64)], None)
    points = [(8.0 * j, 8.0 * i) for i in range(8) for j in range(8)]
    points += [(16.0 * j, 16.0 * i) for i in range(4) for j in range(4)]
    predicted = head.boxes(output)
    giou = centre_sum = bce = 0.0
    positives = 0
    for image, point in (assignment.index > 0).nonzero().tolist():
        box = boxes[image][assignment.index[image, point] - 1]
        (x, y), (x1, y1, x2, y2) = points[point], box.tolist()
        left, right, top, bottom = x - x1, x2 - x, y - y1, y2 - y
        ratios = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        centre = math.sqrt(ratios)
        giou += centre * generalized_box_iou_loss(predicted[image, point], box).item()
        p = quality[image, point].sigmoid().item()
        bce -= centre * math.log(p) + (1 - centre) * math.log(1 - p)
        centre_sum += centre
        positives += 1
    assert (assignment.index > 0).any(1).all()
    assert losses["loss_giou"].item() == pytest.approx(2 * giou / centre_sum, rel=1e-5)
    assert losses["loss_centerness"].item() == pytest.approx(0.5 * bce / positives, rel=1e-5)
    # Cells of the second image below row 48 px do not count: 2 rows of 8 and 1 row of 4.
    flat = torch.cat([level.flatten(2).transpose(1, 2) for level in logits], dim=1)
    p = flat.sigmoid()
    focal = -0.75 * p.square() * (1 - p).log()
    for image, point in (assignment.index > 0).nonzero().tolist():
        label = assignment.labels[image, point]
        value = p[image, point, label]
        focal[image, point, label] = -0.25 * (1 - value).square() * value.log()
    focal[1, 48:64] = 0
    focal[1, 64 + 12 :] = 0
    assert losses["loss_focal"].item() == pytest.approx(focal.sum().item() / positives, rel=1e-5)
