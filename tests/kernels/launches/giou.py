"""The kernels of ``giou``, ``iou`` and ``ciou`` to compile ahead of time."""

from __future__ import annotations

import torch

from gflv2.kernels import giou
from gflv2.kernels.variants import Variant, record
from gflv2.ops.giou import CIOU, CIOU_MMDET, GIOU, IOU
from gflv2.ops.reduction import Reduction


def variants() -> dict[str, list[Variant]]:
    def launch(dtype: torch.dtype, *, form: int = GIOU, total: bool = True) -> list[Variant]:
        pred, target = torch.zeros(300, 4, dtype=dtype), torch.zeros(300, 4)
        factor = torch.ones(()) if total else None
        reduction = Reduction(torch.ones(300) if form != IOU else None, factor, 1.0, "sum" if total else "none")
        out = torch.zeros(() if total else 300)
        gradients = (torch.zeros_like(pred), torch.zeros_like(target) if form == IOU else None)
        inputs = (pred, target, form, 1e-6, reduction)
        return record(lambda: giou.giou_forward(*inputs, out)) + record(
            lambda: giou.giou_backward(out, *inputs, *gradients)
        )

    return {
        "giou float32": launch(torch.float32),
        "giou bfloat16, no total": launch(torch.bfloat16, total=False),
        "iou float32, no total": launch(torch.float32, form=IOU, total=False),
        "iou float16, no total": launch(torch.float16, form=IOU, total=False),
        "ciou float32": launch(torch.float32, form=CIOU),
        "ciou bfloat16, no total": launch(torch.bfloat16, form=CIOU, total=False),
        "ciou of mmdet, float32": launch(torch.float32, form=CIOU_MMDET),
    }
