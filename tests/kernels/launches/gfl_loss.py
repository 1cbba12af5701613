"""The kernels of the box losses of ``gfl_loss``, forward and backward, to compile ahead of time."""

from __future__ import annotations

import torch

from gflv2.kernels import gfl_loss
from gflv2.kernels.variants import Variant, record
from gflv2.ops.box_losses import SavedBoxLoss
from tests.kernels.inputs import POINTS, STRIDES, pyramid


def variants() -> dict[str, list[Variant]]:
    def launch(bins: int, dtype: torch.dtype, *, hidden: int = 64, last: bool = False) -> list[Variant]:
        box = pyramid(4 * bins, dtype, last=last)
        rows, boxes, sides = torch.zeros(2, POINTS), torch.zeros(2, POINTS, 4), torch.zeros(2, POINTS, 4, 2)
        scales, projection = torch.ones(5), torch.arange(float(bins))
        normalisers, giou, dfl, factors = torch.ones(2), torch.zeros(()), torch.zeros(()), (2.0, 0.25)

        def forward() -> None:
            settings = (STRIDES, scales, projection, 0.0, factors)
            gfl_loss.box_loss_forward(box, boxes, rows, normalisers, *settings, sides, giou, dfl)

        def backward() -> None:
            shapes = [(hidden, 20), (hidden,), (hidden,), (1,)] if hidden else []
            predictor, gradients = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
            given = SavedBoxLoss(sides, rows, projection, normalisers, giou, dfl, factors)
            inputs = (rows if hidden else None, box, predictor, scales, 4, bool(hidden), False)
            wanted = ([torch.zeros_like(level) for level in box], gradients, torch.zeros(5))
            gfl_loss.box_loss_backward(*inputs, *wanted, given)

        return [*record(forward), *record(backward)]

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels R=17 bfloat16": launch(17, bf16),
        "levels R=17 float32": launch(17, fp32),
        "levels R=33 float32": launch(33, fp32),
        "levels R=65 float16": launch(65, fp16),
        "levels R=20 bfloat16, 300 hidden units": launch(20, bf16, hidden=300),
        "channels_last R=17 float16": launch(17, fp16, last=True),
        "channels_last R=33 bfloat16": launch(33, bf16, last=True),
        "levels R=17 bfloat16, no quality": launch(17, bf16, hidden=0),
        "channels_last R=33 float32, no quality": launch(33, fp32, hidden=0, last=True),
    }
