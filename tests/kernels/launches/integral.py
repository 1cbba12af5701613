"""The kernels of ``integral`` to compile ahead of time: both forms, R = 17 and 33, the widest and a masked R."""

from __future__ import annotations

import math

import torch

from gflv2.kernels import integral
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BATCH, BINS, CELLS, LEVELS, Hot, of_cells, programs
from tests.kernels.inputs import POINTS, STRIDES, pyramid

_LOGITS = 4 * BINS * CELLS
_FORWARD, _BACKWARD = 2 * _LOGITS + 16 * CELLS, 4 * _LOGITS + 16 * CELLS
HOT = [
    Hot(
        *("integral", "forward", "integral.cu", "integral_forward_strided", "bfloat16ELi17E"),
        *(programs(64), _FORWARD, _LOGITS),
        shared=1024,
    ),
    Hot(
        *("integral", "backward", "integral.cu", "integral_backward_strided", "bfloat16ELi17ELb0E"),
        *(programs(64), _BACKWARD, _LOGITS),
        shared=512,
    ),
    Hot(
        *("integral", "forward", "kernels/integral.py", "integral_forward_kernel", "levels R=17 bfloat16"),
        *(of_cells, _FORWARD, _LOGITS),
    ),
    Hot(
        *("integral", "backward", "kernels/integral.py", "integral_backward_kernel"),
        *("levels R=17 bfloat16, projection fixed", of_cells, _BACKWARD, _LOGITS),
        trips=4,  # sides
    ),
    # The scales' gradients, a block a level; the largest level takes longest.
    Hot(
        *("integral", "backward", "integral.cu", "integral_sums", "", len(LEVELS), 4 * programs(64), programs(64)),
        shared=1024,
        loops={"^LDG": BATCH * math.ceil(LEVELS[0] / 64) / 128},
    ),
    Hot(
        *("integral", "backward", "kernels/integral.py", "integral_reduce_kernel"),
        *("levels R=17 bfloat16, projection fixed", len(LEVELS), 4 * programs(128), programs(128)),
        loops={"^LDG": BATCH * math.ceil(LEVELS[0] / 128) / 128},
    ),
]


def variants() -> dict[str, list[Variant]]:
    def launch(
        bins: int,
        dtype: torch.dtype,
        *,
        last: bool = False,
        rows: bool = False,
        decode: bool = True,
        fixed: bool = False,
    ) -> list[Variant]:
        logits = [torch.zeros(300, 4, bins, dtype=dtype)] if rows else pyramid(4 * bins, dtype, last=last)
        points = torch.zeros(300, 2) if rows and decode else None
        point_strides = torch.zeros(300) if rows and decode else None
        strides = [] if rows or not decode else STRIDES
        shape = (300, 4) if rows else (2, POINTS, 4)
        inputs = (logits, torch.zeros(bins), torch.zeros(len(logits)), points, point_strides, strides, 0.0)
        grad_projection = None if fixed else torch.zeros(bins)
        gradients = ([torch.zeros_like(level) for level in logits], grad_projection, torch.zeros(len(logits)))
        forward = record(lambda: integral.integral_forward(*inputs, torch.zeros(shape)))
        return forward + record(lambda: integral.integral_backward(torch.zeros(shape), *inputs, *gradients))

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels R=17 bfloat16": launch(17, bf16),
        "levels R=17 bfloat16, projection fixed": launch(17, bf16, fixed=True),
        "levels R=33 float32": launch(33, fp32),
        "levels R=65 float32": launch(65, fp32),
        "levels R=20 float16": launch(20, fp16, decode=False),
        "channels_last R=17 float16": launch(17, fp16, last=True),
        "channels_last R=33 bfloat16": launch(33, bf16, last=True),
        "rows R=33 float32": launch(33, fp32, rows=True),
    }
