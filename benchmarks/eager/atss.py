"""``atss`` of a batch on a regular grid, all cells valid, no ignore boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops import Assignment
from gflv2.ops.reference.boxes import pad_boxes, points_of_levels, strides_of_points
from gflv2.ops.reference.giou import iou_rows

ANCHOR = 8.0  # side in strides
REACH = 8  # cells round the nearest one in which the nine nearest cells lie, also at the border


def dense(boxes: Sequence[Tensor], labels: Sequence[Tensor], level_shapes, strides, *, topk: int = 9) -> Assignment:
    """As the authors have it: image by image, distances and IoUs of every box with every point."""
    device = boxes[0].device
    points = points_of_levels(level_shapes, strides, device=device)
    half = strides_of_points(level_shapes, strides, device=device)[:, None] * (ANCHOR / 2)
    anchors = torch.cat([points - half, points + half], dim=1)
    sizes = [height * width for height, width in level_shapes]
    given = (points, anchors, sizes, topk)
    results = [_one_image(image, label, *given) for image, label in zip(boxes, labels, strict=True)]
    return Assignment(*(torch.stack(part) for part in zip(*results, strict=True)))


def _one_image(boxes: Tensor, labels: Tensor, points: Tensor, anchors: Tensor, sizes: list[int], topk: int):
    count, total = len(boxes), len(points)
    if count == 0:
        nothing = torch.full((total,), -1, device=points.device)
        return torch.zeros_like(nothing), torch.zeros(total, device=points.device), nothing
    ious = iou_rows(anchors[:, None], boxes[None])  # (A, G)
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    squared = (points[:, None] - centre).square().sum(-1)
    candidates, start = [], 0
    for size in sizes:
        level = squared[start : start + size]
        candidates.append(level.topk(min(topk, size), dim=0, largest=False).indices + start)
        start += size
    candidates = torch.cat(candidates)  # (K, G)
    chosen = ious.gather(0, candidates)
    threshold = chosen.mean(0) + chosen.std(0)
    place = points[candidates]  # (K, G, 2)
    inside = torch.cat([place - boxes[:, :2], boxes[:, 2:] - place], dim=-1).amin(-1) > 0.01
    positive = (chosen >= threshold) & inside
    kept = torch.full_like(ious, -1e8)
    kept.scatter_(0, candidates, torch.where(positive, chosen, -1e8))
    best, box = kept.max(1)
    hit = best > -1e8
    return torch.where(hit, box + 1, 0), best, torch.where(hit, labels[box], -1)


def window(boxes: Sequence[Tensor], labels: Sequence[Tensor], level_shapes, strides, *, topk: int = 9) -> Assignment:
    """The whole batch at once; a box looks only at the cells round the one that is nearest to its centre."""
    device = boxes[0].device
    corners, exists = pad_boxes(boxes)
    classes, _ = pad_boxes(labels)
    batch, slots = exists.shape
    centre = (corners[..., :2] + corners[..., 2:]) * 0.5
    places, cells, ious = [], [], []
    start = 0
    for (height, width), stride in zip(level_shapes, strides, strict=True):
        x, dx = _near(centre[..., 0], width, stride)
        y, dy = _near(centre[..., 1], height, stride)
        squared = (dx * dx)[:, :, None] + (dy * dy)[..., None]  # (B, G, rows, columns)
        flat = y[..., None] * width + x[:, :, None]
        # Distance bits above, cell below: one order without ties.
        key = (squared.view(torch.int32).long() << 32) | flat
        near = key.flatten(2).topk(min(topk, height * width), largest=False).values & 0xFFFFFFFF
        place = torch.stack([near % width, near // width], dim=-1) * float(stride)
        anchors = torch.cat([place - ANCHOR / 2 * stride, place + ANCHOR / 2 * stride], dim=-1)
        ious.append(iou_rows(anchors, corners[:, :, None]))
        cells.append(near + start)
        places.append(place)
        start += height * width
    if slots == 0:
        nothing = torch.zeros(batch, start, dtype=torch.int64, device=device)
        return Assignment(nothing, nothing.float(), nothing - 1)
    cells, places, ious = torch.cat(cells, 2), torch.cat(places, 2), torch.cat(ious, 2)
    exact = ious.double()
    threshold = (exact.mean(-1) + exact.std(-1)).float()[..., None]
    inside = torch.cat([places - corners[:, :, None, :2], corners[:, :, None, 2:] - places], dim=-1).amin(-1) > 0.01
    positive = (ious >= threshold) & inside & exists[..., None]
    number = torch.arange(slots, device=device)[:, None]
    key = (ious.view(torch.int32).long() << 32) | (0x7FFFFFFF - number)
    claims = torch.full((batch, start + 1), -1, device=device)
    claims.scatter_reduce_(1, torch.where(positive, cells, start).flatten(1), key.flatten(1), "amax")
    claims = claims[:, :start]
    hit = claims >= 0
    box = torch.where(hit, 0x7FFFFFFF - (claims & 0x7FFFFFFF), 0)
    best = torch.where(hit, (claims >> 32).int().view(torch.float32), -1e8)
    best = torch.where(exists.any(1, keepdim=True), best, 0.0)
    return Assignment(torch.where(hit, box + 1, 0), best, torch.where(hit, classes.gather(1, box), -1))


def _near(centre: Tensor, size: int, stride: float) -> tuple[Tensor, Tensor]:
    """Cells (B, G, n) along one axis round the nearest one, all on the grid, and their distances from the centre."""
    nearest = (centre / stride).round().clamp(0, size - 1).long()
    reach = min(2 * REACH + 1, size)
    first = (nearest - REACH).clamp(0, size - reach)
    cells = first[..., None] + torch.arange(reach, device=centre.device)
    return cells, centre[..., None] - cells * float(stride)


FORMS = {"dense": dense, "window": window}
