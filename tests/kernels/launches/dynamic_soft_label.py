"""The kernels of ``dynamic_soft_label`` to compile ahead of time: all costs, dtypes, padded boxes, long lists."""

from __future__ import annotations

import torch

from gflv2.kernels import dynamic_soft_label
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import Hot
from tests.kernels.inputs import POINTS

# How many pairs of a box and a point need a cost follows from the predictions: no forecast is made.
HOT: list[Hot] = []


def variants() -> dict[str, list[Variant]]:
    def launch(cost: str, topk: int, dtype: torch.dtype = torch.float32, *, limits: bool = False) -> list[Variant]:
        boxes = [torch.zeros(3, 4), torch.zeros(70, 4)]
        labels = [torch.zeros(len(image), dtype=torch.int64) for image in boxes]
        counts = torch.zeros(2, dtype=torch.int64) if limits else None
        index, iou = torch.zeros(2, POINTS, dtype=torch.int64), torch.zeros(2, POINTS)
        inputs = (torch.zeros(2, POINTS, 80, dtype=dtype), torch.zeros(2, POINTS, 4), torch.zeros(POINTS, 2))
        rest = (torch.zeros(POINTS), boxes, labels, counts, topk, 3.0, 1.0, 2.5, cost)
        return record(
            lambda: dynamic_soft_label.dynamic_soft_label(*inputs, *rest, index, iou, torch.zeros_like(index))
        )

    return {
        "rtmdet": launch("rtmdet", 13),
        "nanodet, bfloat16": launch("nanodet", 13, torch.bfloat16),
        "simota, counts": launch("simota", 10, limits=True),
        "align_ota, float16, 32 IoUs": launch("align_ota", 32, torch.float16),
    }
