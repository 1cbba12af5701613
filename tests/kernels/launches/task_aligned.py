"""The kernels of ``task_aligned`` to compile ahead of time: as two packages call it, and with all that it can do."""

from __future__ import annotations

from typing import Any

import torch

from gflv2.kernels import task_aligned as kernels
from gflv2.kernels.variants import Variant, record

_CLASSES, _POINTS = 5, 700


def variants() -> dict[str, list[Variant]]:
    def launch(dtype: torch.dtype = torch.float32, *, limits: bool = False, **changes: Any) -> list[Variant]:
        boxes = [torch.zeros(3, 4), torch.zeros(70, 4)]
        index, iou = torch.zeros(2, _POINTS, dtype=torch.int64), torch.zeros(2, _POINTS)
        settings: dict[str, Any] = {
            **{"topk": 10, "alpha": 0.5, "beta": 6.0, "ciou": True, "inside": True, "margin": 1e-9, "min_side": 16.0},
            **{"zeros": True, "containing": True, "final_topk": 0, "normalize": True, "eps": 1e-9},
            **changes,
        }
        return record(
            lambda: kernels.task_aligned(
                scores=torch.zeros(2, _POINTS, _CLASSES, dtype=dtype),
                boxes=torch.zeros(2, _POINTS, 4),
                points=torch.zeros(_POINTS, 2),
                gt_boxes=boxes,
                gt_labels=[torch.zeros(len(image), dtype=torch.int64) for image in boxes],
                counts=torch.zeros(2, dtype=torch.int64) if limits else None,
                **settings,
                index=index,
                iou=iou,
                assigned_labels=torch.zeros_like(index),
                targets=torch.zeros_like(iou),
            )
        )

    mmdet = {"ciou": False, "topk": 13, "alpha": 1.0, "inside": False, "zeros": False, "containing": False}
    return {
        "ciou, 10 candidates inside": launch(torch.bfloat16),
        "iou, 13 candidates anywhere": launch(**mmdet, normalize=False),
        "one point a box, counts": launch(torch.float16, limits=True, topk=7, final_topk=1),
        "32 candidates, other exponents": launch(topk=32, final_topk=32, alpha=0.0, beta=13.0),
    }
