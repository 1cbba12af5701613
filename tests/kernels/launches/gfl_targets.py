"""The kernels of ``gfl_targets`` to compile ahead of time."""

from __future__ import annotations

import math

import torch

from gflv2.kernels import gfl_targets
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BATCH, CELLS, LAST, LEVELS, Hot, of_cells, programs
from tests.kernels.inputs import POINTS, STRIDES, pyramid

_POSITIVE = r"MUFU\.(EX2|LG2)|^LDG\.E\.U16"  # a positive point's: few points are
_PARTIALS = programs(128)
HOT = [
    Hot(
        *("gfl_targets", "forward", "gfl_targets.cu", "gfl_targets_kernel", "bfloat16E"),
        *(programs(128), 44 * CELLS, CELLS),
        shared=4 * (9 * 128 + 1),
        cold=_POSITIVE,
        last={r"^F2F\.F64": _PARTIALS / BATCH / 8, **LAST},  # eight threads an image, all images at a time
    ),
    Hot(
        *("gfl_targets", "forward", "kernels/gfl_targets.py", "gfl_targets_kernel", "levels R=17 bfloat16"),
        *(of_cells, 44 * CELLS, CELLS),
        cold=_POSITIVE,
    ),
    Hot(
        *("gfl_targets", "forward", "kernels/gfl_targets.py", "gfl_targets_sums_kernel", "levels R=17 bfloat16"),
        *(1, 8 * programs(64), 2 * programs(64)),
        trips=(BATCH,),
    ),
    Hot(
        *("gfl_targets", "forward", "kernels/gfl_targets.py", "atss_table_kernel", "levels R=17 bfloat16"),
        *(1, 8 * 64, 64),
        launches=math.ceil(BATCH * (4 + 2 * len(LEVELS)) / 64),
    ),
]


def variants() -> dict[str, list[Variant]]:
    def launch(
        bins: int, dtype: torch.dtype, *, classes: torch.dtype | None = None, quality: bool = True, last: bool = False
    ) -> list[Variant]:
        box, cls = pyramid(4 * bins, dtype, last=last), pyramid(80, classes or dtype, last=last)
        rows, numbers = torch.zeros(2, POINTS), torch.zeros(2, POINTS, dtype=torch.int64)
        maps = (cls, box, numbers, numbers, [torch.zeros(3, 4), torch.zeros(0, 4)], [], STRIDES, torch.ones(5))
        inputs = (*maps, torch.arange(float(bins)), rows if quality else None, 0.0)
        outputs = (numbers, torch.zeros(2, POINTS, 4), rows, rows, rows, torch.zeros(2))
        return record(lambda: gfl_targets.gfl_targets(*inputs, *outputs))

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels R=17 bfloat16": launch(17, bf16),
        "levels R=17 float32, classes bfloat16": launch(17, fp32, classes=bf16),
        "levels R=33 float32": launch(33, fp32),
        "levels R=65 float16": launch(65, fp16),
        "levels R=20 bfloat16": launch(20, bf16),
        "channels_last R=17 float16": launch(17, fp16, last=True),
        "channels_last R=33 bfloat16": launch(33, bf16, last=True),
        "levels R=17 bfloat16, no quality": launch(17, bf16, quality=False),
        "channels_last R=33 float32, no quality": launch(33, fp32, quality=False, last=True),
    }
