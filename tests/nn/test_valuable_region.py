"""``valuable_region`` against its definition, written as a loop over boxes and points."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou, distance_box_iou_loss

from gflv2.nn.valuable_region import valuable_region
from gflv2.ops import atss
from gflv2.ops.reference import atss as reference

SHAPES, STRIDES = [(8, 12), (4, 6), (2, 3)], [8, 16, 32]


def some_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([70.0, 40.0])
    return torch.cat([corner, corner + 6 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def points() -> tuple[torch.Tensor, torch.Tensor]:
    """(A, 2) points and (A, 4) anchors."""
    places = []
    for (height, width), stride in zip(SHAPES, STRIDES, strict=True):
        places += [(x * stride, y * stride, stride) for y in range(height) for x in range(width)]
    x, y, s = torch.tensor(places, dtype=torch.float32).T
    return torch.stack([x, y], 1), torch.stack([x - 4 * s, y - 4 * s, x + 4 * s, y + 4 * s], 1)


def by_loops(boxes: torch.Tensor, index: torch.Tensor, low: float) -> torch.Tensor:
    """(A,) of one image without ignored points."""
    places, anchors = points()
    ious = box_iou(anchors, boxes)
    region = torch.zeros(len(anchors))
    for g, box in enumerate(boxes):
        candidates, start = [], 0
        for height, width in SHAPES:
            level = slice(start, start + height * width)
            distance = (places[level] - (box[:2] + box[2:]) / 2).square().sum(1)
            candidates += (distance.topk(min(9, height * width), largest=False).indices + start).tolist()
            start += height * width
        threshold = ious[candidates, g].mean() + ious[candidates, g].std()
        diou = 1 - distance_box_iou_loss(anchors, box.expand_as(anchors), eps=0)
        inside = (diou >= low * threshold) & (diou < threshold)
        region = torch.where(inside, torch.maximum(region, ious[:, g]), region)
    return torch.where(index == 0, region, 0.0)


@pytest.mark.parametrize("low", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("chunk", [1 << 23, 1000])
def test_it_is_the_definition(monkeypatch, low, chunk) -> None:
    monkeypatch.setattr(reference, "CHUNK", chunk)
    boxes = [some_boxes(5), some_boxes(2, 1)]
    assignment = atss(boxes, [torch.zeros(len(b), dtype=torch.int64) for b in boxes], SHAPES, STRIDES)
    found = valuable_region(assignment, boxes, SHAPES, STRIDES, low=low)
    expected = torch.stack([by_loops(b, i, low) for b, i in zip(boxes, assignment.index, strict=True)])
    torch.testing.assert_close(found, expected)
    assert (found > 0).any(1).all() and not found[assignment.index > 0].any()


def test_a_higher_low_end_takes_points_away() -> None:
    boxes = [some_boxes(4)]
    assignment = atss(boxes, [torch.zeros(4, dtype=torch.int64)], SHAPES, STRIDES)
    sizes = [int((valuable_region(assignment, boxes, SHAPES, STRIDES, low=low) > 0).sum()) for low in (0, 0.25, 0.5, 1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2] and sizes[3] == 0


def test_images_without_boxes_ignored_points_and_padding_have_none() -> None:
    boxes, ignored = [some_boxes(3), torch.zeros(0, 4)], [torch.tensor([[0.0, 0.0, 48.0, 64.0]]), torch.zeros(0, 4)]
    options = {"padded_sizes": [(64, 64), (64, 96)]}
    labels = [torch.zeros(len(b), dtype=torch.int64) for b in boxes]
    assignment = atss(boxes, labels, SHAPES, STRIDES, ignore_boxes=ignored, ignore_iof_thr=0.3, **options)
    found = valuable_region(assignment, boxes, SHAPES, STRIDES, **options)
    assert (assignment.index < 0).any() and found[0].any()
    assert not found[assignment.index != 0].any() and not found[1].any()
    x = points()[0][:, 0]
    assert not found[0][x >= 64].any()


def test_padded_boxes_are_the_ragged_ones() -> None:
    ragged = [some_boxes(3), some_boxes(1, 2)]
    padded, counts = torch.full((2, 4, 4), torch.nan), torch.tensor([3, 1])
    for row, boxes in zip(padded, ragged, strict=True):
        row[: len(boxes)] = boxes
    assignment = atss(ragged, [torch.zeros(len(b), dtype=torch.int64) for b in ragged], SHAPES, STRIDES)
    one = valuable_region(assignment, ragged, SHAPES, STRIDES)
    assert torch.equal(one, valuable_region(assignment, padded, SHAPES, STRIDES, counts=counts))
