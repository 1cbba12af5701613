"""The kernels of ``qfl`` to compile ahead of time: the published form, the other two, and every layout."""

from __future__ import annotations

import torch

from gflv2.kernels import qfl
from gflv2.kernels.variants import Variant, record
from gflv2.ops.reduction import Reduction
from tests.kernels.class_maps import hot_paths
from tests.kernels.inputs import POINTS, pyramid

HOT = hot_paths(
    "qfl",
    r"bfloat16.*QflFormE1ELb1ELb0ELi2ELi8E",
    r"bfloat16.*QflFormE1ELb1ELb1ELi2ELi8E",
    at_a_time=8,
    bytes_of_cell=20,
)


def variants() -> dict[str, list[Variant]]:
    def launch(
        classes: int,
        dtype: torch.dtype,
        *,
        form: str = "class_logits",
        beta: float = 2.0,
        last: bool = False,
        rows: bool = False,
        dense: bool = False,
        total: bool = True,
        weight: bool = True,
    ) -> list[Variant]:
        values = [torch.zeros(300, classes, dtype=dtype)] if rows else pyramid(classes, dtype, last=last)
        shape = (300,) if rows else (2, POINTS)
        quality = torch.zeros(shape) if form == "class_logits" else None
        labels = None if dense else torch.zeros(shape, dtype=torch.int64)
        scores = torch.zeros(300, classes) if dense else torch.zeros(shape)
        factor = torch.ones(()) if total else None
        reduction = Reduction(torch.ones(shape) if weight else None, factor, 1.0, "sum" if total else "none")
        inputs = (values, quality, labels, scores, form, beta, reduction)
        out = torch.zeros(() if total else shape)
        gradients = ([torch.zeros_like(level) for level in values], None if quality is None else torch.zeros(shape))
        forward = record(lambda: qfl.qfl_forward(*inputs, out))
        return forward + record(lambda: qfl.qfl_backward(out, *inputs, *gradients))

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels C=80 bfloat16": launch(80, bf16),
        "levels C=1 float32": launch(1, fp32),
        "levels C=80 float16, β=1.5": launch(80, fp16, beta=1.5),
        "levels C=80 float32, logits, no weight": launch(80, fp32, form="logits", weight=False),
        "channels_last C=80 bfloat16": launch(80, bf16, last=True),
        "channels_last C=20 float32, probabilities, no total": launch(
            20, fp32, last=True, form="probabilities", total=False
        ),
        "rows C=1203 float32": launch(1203, fp32, rows=True),
        "rows C=80 float32, dense": launch(80, fp32, rows=True, dense=True),
        "rows C=80 bfloat16, dense, β=1.5, no total": launch(80, bf16, rows=True, dense=True, beta=1.5, total=False),
        "rows C=80 float32, dense, probabilities, β=0.5": launch(
            80, fp32, rows=True, dense=True, form="probabilities", beta=0.5
        ),
    }
