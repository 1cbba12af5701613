"""The kernels of ``atss`` to compile ahead of time: the usual call, and with all that it can be given."""

from __future__ import annotations

import torch

from gflv2.kernels import atss
from gflv2.kernels.variants import Variant, record


def variants() -> dict[str, list[Variant]]:
    shapes, strides = [20, 21, 10, 11, 5, 6, 3, 4, 2, 3], [8.0, 16.0, 32.0, 64.0, 128.0]
    sizes = [height * width for height, width in zip(shapes[::2], shapes[1::2], strict=True)]

    def launch(topk: int, *, ignore: bool = False, points: bool = False, limits: bool = False) -> list[Variant]:
        boxes = [torch.zeros(3, 4), torch.zeros(70, 4)]
        labels = [torch.zeros(len(image), dtype=torch.int64) for image in boxes]
        counts = torch.zeros(2, dtype=torch.int64) if limits else None
        places = [torch.zeros(size, 2) for size in sizes] if points else []
        index, iou = torch.zeros(2, sum(sizes), dtype=torch.int64), torch.zeros(2, sum(sizes))
        inputs = (boxes, labels, counts, boxes if ignore else [], places, shapes, [], strides, topk, 8.0, 0.0, 0.5)
        return record(lambda: atss.atss(*inputs, index, iou, torch.zeros_like(index)))

    return {
        "grid": launch(9),
        "grid, ignore boxes, counts": launch(9, ignore=True, limits=True),
        "grid, 32 candidates": launch(32),
        "points, ignore boxes": launch(9, ignore=True, points=True),
    }
