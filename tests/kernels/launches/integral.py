"""The kernels of ``integral`` to compile ahead of time: both forms, R = 17 and 33, the widest and a masked R."""

from __future__ import annotations

import torch

from gflv2.kernels import integral
from gflv2.kernels.variants import Variant, record


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
        if rows:
            logits = [torch.zeros(300, 4, bins, dtype=dtype)]
        else:
            logits = [torch.zeros(2, 4 * bins, size, size + 1, dtype=dtype) for size in (20, 10, 5, 3, 2)]
        if last:
            logits = [level.contiguous(memory_format=torch.channels_last) for level in logits]
        points = torch.zeros(300, 2) if rows and decode else None
        point_strides = torch.zeros(300) if rows and decode else None
        strides = [] if rows or not decode else [8.0, 16.0, 32.0, 64.0, 128.0]
        shape = (300, 4) if rows else (2, sum(level.shape[2] * level.shape[3] for level in logits), 4)
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
