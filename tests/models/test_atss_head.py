"""The box coding and the centerness of the ATSS head, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gflv2.models.atss_head import ATSSHead, centerness, deltas_to_boxes
from gflv2.models.towers import HeadOutput


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
