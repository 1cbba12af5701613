"""The kernels of ``focal`` to compile ahead of time: the published settings, any exponent, and every layout."""

from __future__ import annotations

import torch

from gflv2.kernels import focal
from gflv2.kernels.variants import Variant, record
from gflv2.ops.focal import _settings
from gflv2.ops.reduction import Reduction
from tests.kernels.class_maps import hot_paths
from tests.kernels.inputs import POINTS, pyramid

# Sigmoid focal loss, varifocal loss and IoU-aware cross-entropy have γ = 2 and share their kernels; the gradient of
# matchability-aware loss has one of its own.
HOT = hot_paths("focal", r"bfloat16ELb0ELi4ELb0ELi2E", r"bfloat16ELb0ELi4ELb1ELi2E", at_a_time=4, bytes_of_cell=12)


def variants() -> dict[str, list[Variant]]:
    def launch(
        classes: int,
        dtype: torch.dtype,
        *,
        kind: str = "varifocal",
        gamma: float | None = None,
        last: bool = False,
        rows: bool = False,
        total: bool = True,
    ) -> list[Variant]:
        logits = [torch.zeros(300, classes, dtype=dtype)] if rows else pyramid(classes, dtype, last=last)
        shape = (300,) if rows else (2, POINTS)
        labels = torch.zeros(shape, dtype=torch.int64)
        scores = None if kind == "sigmoid_focal" else torch.zeros(shape)
        factor = torch.ones(()) if total else None
        reduction = Reduction(torch.ones(shape), factor, 1.0, "sum" if total else "none")
        inputs = (logits, labels, scores, *_settings(kind, None, gamma, True, None), reduction)
        out = torch.zeros(() if total else shape)
        forward = record(lambda: focal.focal_forward(*inputs, out))
        return forward + record(
            lambda: focal.focal_backward(out, *inputs, [torch.zeros_like(level) for level in logits])
        )

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels C=80 bfloat16": launch(80, bf16),
        "levels C=80 bfloat16, sigmoid_focal": launch(80, bf16, kind="sigmoid_focal"),
        "levels C=80 bfloat16, iou_aware_bce, γ=1.2": launch(80, bf16, kind="iou_aware_bce", gamma=1.2),
        "levels C=1 float32, γ=1.2": launch(1, fp32, gamma=1.2),
        "channels_last C=80 float16, sigmoid_focal": launch(80, fp16, last=True, kind="sigmoid_focal"),
        "rows C=80 float32, matchability_aware": launch(80, fp32, rows=True, kind="matchability_aware"),
        "rows C=80 bfloat16, matchability_aware, no total": launch(
            80, bf16, rows=True, kind="matchability_aware", total=False
        ),
        "rows C=366 float32, iou_aware_bce": launch(366, fp32, rows=True, kind="iou_aware_bce"),
        "rows C=80 float32, sigmoid_focal, γ=1.2": launch(80, fp32, rows=True, kind="sigmoid_focal", gamma=1.2),
    }
