"""The kernels of ``dynamic_soft_label`` to compile ahead of time: all costs, dtypes, padded boxes, long lists."""

from __future__ import annotations

import math

import torch

from gflv2.kernels import dynamic_soft_label
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BATCH, BOXES, CLASSES, LEVELS, Hot, Way
from tests.kernels.inputs import POINTS

# RTMDet's three levels. Nearly all points are candidates, known after half of the boxes. Half of a warp's turns change
# a list of IoUs in CUDA, a quarter one of costs; in Triton three fifths change each. A box takes six points, and one
# point in 500 has several boxes.
_POINTS_OF_IMAGE = sum(LEVELS[:3])
_CELLS = BATCH * _POINTS_OF_IMAGE
_PAIRS = BOXES * _CELLS
_POINTS = 2 * CLASSES * _CELLS + 48 * _CELLS
_BOXES, _FINISH = 24 * _CELLS + 24 * BATCH * BOXES, 32 * _CELLS
_BLOCKS = BATCH * math.ceil(_POINTS_OF_IMAGE / 128)
_TURNS = _POINTS_OF_IMAGE / 128
_CALL = "rtmdet, bfloat16"
HOT = [
    Hot(
        *("dynamic_soft_label", "forward", "dynamic_soft_label.cu", "soft_label_points", "CostE0E"),
        *(_BLOCKS, _POINTS, CLASSES * _CELLS),
        trips=(BOXES / 2, CLASSES / 16),
        cold=r"^LDG\.E R",  # of float32
    ),
    Hot(
        *("dynamic_soft_label", "forward", "dynamic_soft_label.cu", "soft_label_boxes", "CostE0E"),
        *(BATCH * BOXES, _BOXES, _PAIRS),
        shared=8 * 128 * 14,
        ways=(
            Way(0.64, r"^LDS\.64|DADD", (None, None, None, None, _TURNS, None, 13, 1, None, None, _TURNS, None, 6, 6)),
            Way(0.36, "", (None, None, None, None, _TURNS, 3, 13, 1, None, None, _TURNS, 3, 6, 6)),
        ),
    ),
    Hot(
        *("dynamic_soft_label", "forward", "dynamic_soft_label.cu", "soft_label_finish", "CostE0E"),
        *(_BLOCKS, _FINISH, _CELLS),
        shared=8 * 256,
        ways=(Way(0.8, "DADD"), Way(0.2, "", (1, 1))),
    ),
    Hot(
        *("dynamic_soft_label", "forward", "kernels/dynamic_soft_label.py", "dynamic_soft_label_points_kernel", _CALL),
        *(BATCH * math.ceil(_POINTS_OF_IMAGE / 64), _POINTS, CLASSES * _CELLS),
        loops={"^DADD": 8 * CLASSES / 16, "^LDG": 5 * BOXES},
    ),
    Hot(
        *("dynamic_soft_label", "forward", "kernels/dynamic_soft_label.py", "dynamic_soft_label_boxes_kernel", _CALL),
        *(BATCH * math.ceil(BOXES / 4), _BOXES, _PAIRS),
        ways=(Way(0.4, "DADD", (_TURNS,)), Way(0.6, "", (_TURNS, 13, 13))),
    ),
    Hot(
        *("dynamic_soft_label", "forward", "kernels/dynamic_soft_label.py", "dynamic_soft_label_finish_kernel", _CALL),
        *(BATCH * math.ceil(_POINTS_OF_IMAGE / 32), _FINISH, _CELLS),
        ways=(Way(0.96, "DADD"), Way(0.04, "", (math.ceil(BOXES / 8),))),
    ),
]


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
        _CALL: launch("rtmdet", 13, torch.bfloat16),
        "nanodet, bfloat16": launch("nanodet", 13, torch.bfloat16),
        "simota, counts": launch("simota", 10, limits=True),
        "align_ota, float16, 32 IoUs": launch("align_ota", 32, torch.float16),
    }
