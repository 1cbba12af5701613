"""The kernels of ``atss`` to compile ahead of time: the usual call, and with all that it can be given."""

from __future__ import annotations

import math

import torch

from gflv2.kernels import atss
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BATCH, BOXES, CELLS, LEVELS, Hot
from tests.kernels.inputs import POINTS, SIZES, STRIDES

_BLOCKS = BATCH * math.ceil(sum(LEVELS) / 256)
_SEARCHES = BATCH * len(LEVELS) * math.ceil(BOXES / 16)
_CANDIDATES = BATCH * BOXES * len(LEVELS) * 9
HOT = [
    Hot(
        *("atss", "forward", "atss.cu", "atss_claim", "ILi9ELb0E"),
        *(BATCH * math.ceil(BOXES / 25), 16 * BATCH * BOXES + 8 * _CANDIDATES, 5 * BATCH * BOXES),
        shared=25 * 5 * 9 * 4,
        cold=r"^LDG\.E\.U8",  # whether an ignore box covers a cell
    ),
    Hot(
        *("atss", "forward", "atss.cu", "atss_finish", ""),
        *(BATCH * sum(math.ceil(level / 1024) for level in LEVELS), 20 * CELLS, CELLS),
        warps=8,
        shared=8 * 1024,
        # The claims of a level, a candidate a thread at a time; few are those of one of the block's points.
        loops={r"^LDG\.E\.64": BOXES * 9 / 256},
        cold=r"0x7fffffff|^LDG\.E\.U8",
    ),
    # Triton: the table of 16 × (4 + 2 · 5) numbers, 64 a launch.
    Hot(
        *("atss", "forward", "kernels/atss.py", "atss_table_kernel", "grid", 1, 8 * 64, 64),
        launches=math.ceil(BATCH * (4 + 2 * len(LEVELS)) / 64),
    ),
    Hot(
        *("atss", "forward", "kernels/atss.py", "atss_nearest_kernel", "grid"),
        *(_SEARCHES, 16 * BATCH * BOXES + 4 * _CANDIDATES, len(LEVELS) * BATCH * BOXES),
        # One window, whose two sides and cells take one turn each; nine candidates are merged.
        trips=(1, 1, 1, 1, 9),
    ),
    Hot(
        *("atss", "forward", "kernels/atss.py", "atss_overlap_kernel", "grid"),
        *(_SEARCHES, 16 * BATCH * BOXES + 8 * _CANDIDATES, len(LEVELS) * BATCH * BOXES),
    ),
    Hot(
        *("atss", "forward", "kernels/atss.py", "atss_claim_kernel", "grid"),
        *(BATCH * math.ceil(BOXES / 32), 16 * BATCH * BOXES + 8 * _CANDIDATES, len(LEVELS) * BATCH * BOXES),
        # Nine candidates of each level, four at a time, then the rest: their mean, and their deviation; all once more.
        trips=(*(2, 1) * 2 * len(LEVELS), len(LEVELS), 9),
    ),
    Hot(
        *("atss", "forward", "kernels/atss.py", "atss_finish_kernel", "grid", _BLOCKS, 28 * CELLS, CELLS),
    ),
]


def variants() -> dict[str, list[Variant]]:
    shapes = [side for size in SIZES for side in size]

    def launch(topk: int, *, ignore: bool = False, points: bool = False, limits: bool = False) -> list[Variant]:
        boxes = [torch.zeros(3, 4), torch.zeros(70, 4)]
        labels = [torch.zeros(len(image), dtype=torch.int64) for image in boxes]
        counts = torch.zeros(2, dtype=torch.int64) if limits else None
        places = [torch.zeros(height * width, 2) for height, width in SIZES] if points else []
        index, iou = torch.zeros(2, POINTS, dtype=torch.int64), torch.zeros(2, POINTS)
        inputs = (boxes, labels, counts, boxes if ignore else [], places, shapes, [], STRIDES, topk, 8.0, 0.0, 0.5)
        return record(lambda: atss.atss(*inputs, index, iou, torch.zeros_like(index)))

    return {
        "grid": launch(9),
        "grid, ignore boxes, counts": launch(9, ignore=True, limits=True),
        "grid, 32 candidates": launch(32),
        "points, ignore boxes": launch(9, ignore=True, points=True),
    }
