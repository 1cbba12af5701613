"""Large images in overlapping tiles: where they lie, and one result from theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area

from gflv2.engine.results import Result
from gflv2.ops.checks import check_count, check_number

_EDGE = 2.0  # pixels: a box that ends so near to an inner edge of its tile may be cut there


class Tile(NamedTuple):
    """A part of an image, in pixels."""

    x1: int
    y1: int
    x2: int
    y2: int

    def of(self, image: Tensor) -> Tensor:
        """(3, H, W) → its part."""
        return image[:, self.y1 : self.y2, self.x1 : self.x2]


def tiles_of(height: int, width: int, side: int, overlap: float) -> list[Tile]:
    """Tiles that cover an image, row by row; all but those of smaller images are squares.

    Args:
        side: of a tile in pixels.
        overlap: least part of the side that neighbours share, from 0 to 0.9.
    """
    check_count(side, "tiles", least=32)
    check_number(overlap, "overlap", least=0, most=0.9)
    step = max(int(side * (1 - overlap)), 1)
    rows, columns = (_starts(size, side, step) for size in (height, width))
    return [Tile(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(size: int, side: int, step: int) -> list[int]:
    """The last tile ends at the image's edge."""
    last = max(size - side, 0)
    return [*range(0, last, step), last]


def merge(
    parts: Sequence[Result],
    tiles: Sequence[Tile],
    image: Any,
    path: Path | None,
    *,
    iou_thr: float,
    max_detections: int,
) -> Result:
    """One result from those of the tiles.

    A box that ends at an inner edge of its tile may show a part of an object. It is dropped where a box of its class
    from another tile covers more than ``iou_thr`` of it: a class-wise NMS, which follows, would keep both.

    Args:
        parts: of the tiles, in their order.
        image: (H, W, 3), the whole. path: its file.
    """
    first = parts[0]
    shifts = torch.tensor([tile[:2] for tile in tiles], dtype=torch.float32)
    numbers = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    boxes = torch.cat([part.boxes for part in parts]) + shifts[numbers].repeat(1, 2)
    scores, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("scores", "labels"))
    whole = ~_cut_and_covered(boxes, labels, numbers, tiles, image.shape[:2], iou_thr)
    rows = whole.nonzero()[:, 0]
    rows = rows[batched_nms(boxes[rows].double(), scores[rows].double(), labels[rows], iou_thr)][:max_detections]
    more: dict[str, Any] = {"projection": first.projection, "category_ids": first.category_ids}
    for name in ("distributions", "points", "strides", "levels"):
        if getattr(first, name) is not None:
            more[name] = torch.cat([getattr(part, name) for part in parts])[rows]
    if first.points is not None:
        more["points"] = more["points"] + shifts[numbers[rows]]
    return Result(boxes[rows], scores[rows], labels[rows], first.class_names, image, path, **more)


def _cut_and_covered(
    boxes: Tensor, labels: Tensor, numbers: Tensor, tiles: Sequence[Tile], size: Sequence[int], share: float
) -> Tensor:
    """(N,) which boxes end at an inner edge of their tile and are covered by one of another tile."""
    height, width = size
    edges = torch.tensor(tiles, dtype=torch.float32)[numbers]
    inner = (edges > 0) & (edges < torch.tensor([width, height, width, height]))  # not the image's own edges
    cut = (((boxes - edges).abs() < _EDGE) & inner).any(1)
    rows = cut.nonzero()[:, 0]
    low = torch.maximum(boxes[rows, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[rows, None, 2:], boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    others = (labels[rows, None] == labels) & (numbers[rows, None] != numbers) & ~cut
    covered = (others & (common > share * box_area(boxes[rows])[:, None])).any(1)
    found = torch.zeros_like(cut)
    found[rows] = covered
    return found
