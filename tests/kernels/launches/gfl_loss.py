"""The kernels of ``gfl_targets`` and of ``gfl_loss``, forward and backward, to compile ahead of time."""

from __future__ import annotations

import torch

from gflv2.kernels import gfl_loss, gfl_targets
from gflv2.kernels.variants import Variant, record
from gflv2.ops.box_losses import SavedBoxLoss


def variants() -> dict[str, list[Variant]]:
    def launch(
        bins: int, dtype: torch.dtype, *, classes: torch.dtype | None = None, hidden: int = 64, last: bool = False
    ) -> list[Variant]:
        form = torch.channels_last if last else torch.contiguous_format
        sizes = [(size, size + 1) for size in (20, 10, 5, 3, 2)]
        box = [torch.zeros(2, 4 * bins, *size, dtype=dtype).to(memory_format=form) for size in sizes]
        cls = [torch.zeros(2, 80, *size, dtype=classes or dtype).to(memory_format=form) for size in sizes]
        points = sum(height * width for height, width in sizes)
        rows, numbers = torch.zeros(2, points), torch.zeros(2, points, dtype=torch.int64)
        boxes, scales, projection = torch.zeros(2, points, 4), torch.ones(5), torch.arange(float(bins))
        strides, pair, one = [8.0, 16.0, 32.0, 64.0, 128.0], torch.zeros(2), torch.ones(())
        sides = torch.zeros(2, points, 4, 2)
        quality = rows if hidden else None

        def targets() -> None:
            inputs = (cls, box, numbers, numbers, [torch.zeros(3, 4), torch.zeros(0, 4)], [], strides, scales)
            gfl_targets.gfl_targets(*inputs, projection, quality, 0.0, numbers, boxes, rows, rows, rows, pair)

        def losses() -> None:
            settings = (strides, scales, projection, 0.0, (2.0, 0.25))
            gfl_loss.box_loss_forward(box, boxes, rows, one, *settings, sides, pair)

        def backward() -> None:
            shapes = [(hidden, 20), (hidden,), (hidden,), (1,)] if hidden else []
            predictor, gradients = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
            given = SavedBoxLoss(sides, rows, projection, pair, one, (2.0, 0.25))
            statistics = (4, True, False) if hidden else (4, False, False)
            wanted = ([torch.zeros_like(level) for level in box], gradients, torch.zeros(5))
            gfl_loss.box_loss_backward(quality, box, predictor, scales, *statistics, *wanted, given)

        return [*record(targets), *record(losses), *record(backward)]

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels R=17 bfloat16": launch(17, bf16),
        "levels R=17 float32, classes bfloat16": launch(17, fp32, classes=bf16),
        "levels R=33 float32": launch(33, fp32),
        "levels R=65 float16": launch(65, fp16),
        "levels R=20 bfloat16, 300 hidden units": launch(20, bf16, hidden=300),
        "channels_last R=17 float16": launch(17, fp16, last=True),
        "channels_last R=33 bfloat16": launch(33, bf16, last=True),
        "levels R=17 bfloat16, no quality": launch(17, bf16, hidden=0),
        "channels_last R=33 float32, no quality": launch(33, fp32, hidden=0, last=True),
    }
