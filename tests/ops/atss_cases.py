"""Inputs for the tests of ``atss``: boxes of every kind, both forms, grids and points, valid cells, ignore boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.ops.under_test import INTERPRETED

KINDS = (
    "random",
    "whole numbers",
    "on the grid",
    "around the image",
    "far away",
    "one centre",
    "odd numbers",
    "inside out",
)
# The interpreter takes some 0.1 s for a level of an image.
SHAPES = ((9, 11), (2, 3)) if INTERPRETED else ((19, 23), (10, 12), (5, 6), (3, 3), (2, 2))
STRIDES = (8.0, 32.0) if INTERPRETED else (8.0, 16.0, 32.0, 64.0, 128.0)
COUNTS = (12, 0) if INTERPRETED else (7, 0, 30)


@dataclass(frozen=True)
class Case:
    """One call of ``atss``; the tensors follow from it and the seed."""

    shapes: tuple[tuple[int, int], ...] = SHAPES
    strides: tuple[float, ...] = STRIDES
    counts: tuple[int, ...] = COUNTS  # boxes of each image
    kind: str = "random"
    form: str = "ragged"  # or "padded", "padded without counts"
    topk: int = 9
    anchor_scale: float = 8.0
    offset: float = 0.0
    own_sizes: bool = False  # a padded size of its own for each image
    ignore: int = 0  # ignore boxes of an image
    ignore_iof_thr: float = 0.4
    points: str = "grid"  # or "anywhere", "tied"
    twins: bool = False  # every box comes twice
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    def inputs(self, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of ``atss``."""
        draw = torch.Generator().manual_seed(self.seed)
        boxes = [self._boxes(count, draw).to(self.dtype).to(device) for count in self.counts]
        labels = [torch.randint(0, 80, (len(image),), generator=draw).to(device) for image in boxes]
        more: dict[str, Any] = {"topk": self.topk, "anchor_scale": self.anchor_scale, "offset": self.offset}
        if self.own_sizes:
            size = self._extent() * torch.rand(len(boxes), 2, generator=draw)
            more["padded_sizes"] = [tuple(image) for image in size.tolist()]
        if self.ignore:
            images = [self._boxes(self.ignore * (index + 1) % 5, draw).to(device) for index in range(len(boxes))]
            more |= {"ignore_boxes": images, "ignore_iof_thr": self.ignore_iof_thr}
        shapes: Any = list(self.shapes)
        if self.points != "grid":
            more["points"] = [self._points(height * width, draw).to(device) for height, width in self.shapes]
            more.pop("padded_sizes", None)
            shapes = None
        if self.form != "ragged":
            slots = max(self.counts) + 2
            numbers = torch.tensor([len(image) for image in boxes], device=device)
            boxes, labels = _padded(boxes, slots, 333.0), _padded(labels, slots, 99)
            if self.form == "padded":
                more["counts"] = numbers
        return (boxes, labels, shapes, list(self.strides)), more

    def _extent(self) -> Tensor:
        """Height and width of the image that the levels cover, at least 1 pixel."""
        sizes = [(h * s, w * s) for (h, w), s in zip(self.shapes, self.strides, strict=True)]
        return torch.tensor([max(max(size[axis] for size in sizes), 1.0) for axis in (0, 1)])

    def _boxes(self, count: int, draw: torch.Generator) -> Tensor:
        extent = self._extent().flip(0)
        centre = torch.rand(count, 2, generator=draw) * extent
        size = torch.exp(1.5 * torch.randn(count, 2, generator=draw)) * extent / 8
        if self.kind == "whole numbers":
            centre, size = centre.round(), (size / 2).round() * 2
        elif self.kind == "on the grid":
            centre = (centre / self.strides[0]).round() * self.strides[0]
        elif self.kind == "around the image":
            centre = (centre - extent / 2) * 10
            size = size + 2 * (centre - extent / 2).abs()
        elif self.kind == "far away":
            # The centre leaves the image in any direction, the box still reaches back into it.
            reach = extent.max() * 10 ** (7 * torch.rand(count, 1, generator=draw))
            direction = torch.randn(count, 2, generator=draw)
            direction = torch.where(torch.rand(count, 2, generator=draw) < 0.3, 0.0, direction)
            centre = centre + reach * direction
            size = 2 * (centre - extent / 2).abs() + torch.rand(count, 2, generator=draw) * extent
        elif self.kind == "one centre":
            centre = extent / 2 + torch.zeros(count, 2)
        elif self.kind == "inside out":
            size = -size
        boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
        if self.kind == "odd numbers":
            odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e30, -1e38, 3e38, 0.0, 1e-40])
            pick = odd[torch.randint(0, len(odd), (count, 4), generator=draw)]
            boxes = torch.where(torch.rand(count, 4, generator=draw) < 0.2, pick, boxes)
        if self.twins:
            boxes[1::2] = boxes[: len(boxes) // 2 * 2 : 2]
        return boxes

    def _points(self, count: int, draw: torch.Generator) -> Tensor:
        places = torch.rand(count, 2, generator=draw) * self._extent().flip(0)
        return (places / 32).round() * 32 if self.points == "tied" else places


def _padded(images: list[Tensor], slots: int, junk: float) -> Tensor:
    """(B, slots, …): what lies behind the boxes of an image looks like a box too."""
    return torch.stack(
        [torch.cat([image, image.new_full((slots - len(image), *image.shape[1:]), junk)]) for image in images]
    )
