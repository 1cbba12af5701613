"""The kernels of ``task_aligned`` to compile ahead of time: as two packages call it, and with all that it can do."""

from __future__ import annotations

import math
from typing import Any

import torch

from gflv2.kernels import task_aligned as kernels
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BATCH, BOXES, CELLS, LEVELS, Hot, Way

# As ultralytics calls it. Of a box's turns a tenth has a point inside for some lane of a warp, a quarter for a block of
# 256 points; then two keys enter the list. Two fifths of the warps have a claimed point, one twentieth one that several
# boxes claim; of Triton's programs 93 % and 14 %.
_POINTS_OF_IMAGE = sum(LEVELS)
_PAIRS, _CHOSEN = BOXES * CELLS, 10 * BATCH * BOXES
_BLOCKS = BATCH * math.ceil(_POINTS_OF_IMAGE / 256)
_CLAIM, _SETTLE, _FINISH = 16 * CELLS + 24 * BATCH * BOXES + 12 * _CHOSEN, 24 * CELLS, 16 * CELLS
_PAIR = "MUFU"  # overlap and metric
_CALL = "ciou, 10 candidates inside"
HOT = [
    Hot(
        *("task_aligned", "forward", "task_aligned.cu", "task_aligned_clear", ""),
        *(_BLOCKS, 12 * CELLS, CELLS),
        warps=8,
        cold=r"^STG\.E\.64 .*, RZ$",  # of a box
    ),
    Hot(
        *("task_aligned", "forward", "task_aligned.cu", "task_aligned_claim", "ILi10E"),
        *(BATCH * BOXES, _CLAIM, _PAIRS),
        shared=8 * (128 + 100 + 10 + 2),
        ways=(
            Way(0.9, _PAIR, (_POINTS_OF_IMAGE / 128, None, None, 4)),
            Way(0.1, "", (_POINTS_OF_IMAGE / 128, None, 3, 4)),
        ),
    ),
    Hot(
        *("task_aligned", "forward", "task_aligned.cu", "task_aligned_settle", ""),
        *(_BLOCKS, _SETTLE, CELLS),
        warps=8,
        ways=(Way(0.57, _PAIR), Way(0.38, "DADD"), Way(0.05, _PAIR, (BOXES,))),
    ),
    Hot(
        *("task_aligned", "forward", "task_aligned.cu", "task_aligned_finish", ""),
        *(_BLOCKS, _FINISH, CELLS),
        warps=8,
        ways=(Way(0.57, _PAIR), Way(0.43)),
    ),
    Hot(
        *("task_aligned", "forward", "kernels/task_aligned.py", "task_aligned_claim_kernel", _CALL),
        *(BATCH * BOXES, _CLAIM, _PAIRS),
        ways=(
            Way(0.75, _PAIR, (_POINTS_OF_IMAGE / 256,)),
            Way(0.25, "", (_POINTS_OF_IMAGE / 256, 2)),
        ),
    ),
    Hot(
        *("task_aligned", "forward", "kernels/task_aligned.py", "task_aligned_settle_kernel", _CALL),
        *(_BLOCKS, _SETTLE, CELLS),
        ways=(Way(0.86, "BAR"), Way(0.14, _PAIR, (BOXES,))),
    ),
    Hot(
        *("task_aligned", "forward", "kernels/task_aligned.py", "task_aligned_finish_kernel", _CALL),
        *(_BLOCKS, _FINISH, CELLS),
    ),
]

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
        _CALL: launch(torch.bfloat16),
        "iou, 13 candidates anywhere": launch(**mmdet, normalize=False),
        "one point a box, counts": launch(torch.float16, limits=True, topk=7, final_topk=1),
        "32 candidates, other exponents": launch(topk=32, final_topk=32, alpha=0.0, beta=13.0),
    }
