"""What the assignment makes of a data set's boxes: positive points, their levels and targets, objects without any."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from gflv2.config import GRIDS, Config
from gflv2.data.dataset import CocoDetection
from gflv2.data.transforms import resized_size
from gflv2.ops import atss
from gflv2.ops.reference.boxes import CLAMPED


@dataclass
class Positives:
    """Boxes of some images, resized as for training without its randomness, and their positive points.

    Attributes:
        objects: number of boxes, without crowds.
        without: of boxes without a positive point: item of the data set, row of its boxes, (width, height) resized.
        strides: of the levels.
        sides: for each level the larger side of the box of each positive point, in strides.
        targets: for each level (P, 4) distances of its positive points to the sides of their boxes, in strides.
    """

    objects: int
    without: list[tuple[int, int, tuple[float, float]]]
    strides: list[int]
    sides: list[np.ndarray] = field(repr=False)
    targets: list[np.ndarray] = field(repr=False)

    def share_without(self) -> float:
        """Share of the objects that have no positive point, and are therefore never learnt."""
        return len(self.without) / self.objects if self.objects else 0.0

    def share_beyond(self, reg_max: int) -> float:
        """Share of the targets that are clamped, because the bins end before them."""
        targets = np.concatenate([level.ravel() for level in self.targets])
        return float((targets > reg_max - CLAMPED).mean()) if targets.size else 0.0


def positives(dataset: CocoDetection, config: Config, items: Iterable[int], *, scale: float = 1.0) -> Positives:
    """Assign points to the boxes of some items, as training does with the middle of ``data.short_side``.

    Args:
        dataset: images are not read.
        config: sizes and head.
        items: indices of the data set.
        scale: of the image sizes in the configuration.
    """
    head, data = config.model.head, config.data
    short, long = scale * sum(data.short_side) / 2, scale * data.long_side
    strides, grid = list(head.strides), GRIDS[head.kind]
    found = Positives(0, [], strides, [], [])
    targets, sides = [[np.zeros((0, 4))] for _ in strides], [[np.zeros(0)] for _ in strides]
    for item in items:
        boxes, labels = dataset.annotations(item)
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            continue
        boxes = torch.from_numpy(boxes[rows])
        size = dataset.size(item)
        height, width = resized_size(*size, round(long), round(short))
        boxes = boxes * torch.tensor([width / size[1], height / size[0]] * 2) - grid.shift
        padded = tuple(math.ceil(side / data.pad_divisor) * data.pad_divisor for side in (height, width))
        shapes = [tuple(math.ceil(side / stride) for side in padded) for stride in strides]
        assignment = atss(
            [boxes],
            [torch.zeros(len(boxes), dtype=torch.int64)],
            shapes,
            strides,
            topk=head.atss_topk,
            padded_sizes=[padded],
            offset=grid.offset,
            anchor_scale=grid.anchor_scale,
        )
        found.objects += len(rows)
        index = assignment.index[0]
        count = torch.bincount(index.clamp(min=0), minlength=len(rows) + 1)[1:]
        for row in (count == 0).nonzero()[:, 0].tolist():
            x1, y1, x2, y2 = boxes[row].tolist()
            found.without.append((item, int(rows[row]), (x2 - x1, y2 - y1)))
        begin = 0
        for level, ((rows_of_cells, columns), stride) in enumerate(zip(shapes, strides, strict=True)):
            part = index[begin : begin + rows_of_cells * columns]
            begin += rows_of_cells * columns
            cells = (part > 0).nonzero()[:, 0]
            box = boxes[part[cells] - 1] / stride
            x, y = cells % columns + grid.offset, cells // columns + grid.offset
            distances = torch.stack([x - box[:, 0], y - box[:, 1], box[:, 2] - x, box[:, 3] - y], dim=1)
            targets[level].append(distances.numpy())
            sides[level].append((box[:, 2:] - box[:, :2]).amax(1).numpy() if len(box) else np.zeros(0))
    found.targets = [np.concatenate(level) for level in targets]
    found.sides = [np.concatenate(level) for level in sides]
    return found


def spread(length: int, most: int) -> list[int]:
    """At most so many indices below ``length``, evenly spread."""
    count = min(length, most)
    return [int(i) for i in np.linspace(0, length - 1, count).round()] if count else []
