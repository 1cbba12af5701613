"""The kernels of ``dfl`` to compile ahead of time: R = 17 and 33, the widest and a masked R, and both orders."""

from __future__ import annotations

import torch

from gflv2.kernels import dfl
from gflv2.kernels.variants import Variant, record
from gflv2.ops.reduction import Reduction


def variants() -> dict[str, list[Variant]]:
    def launch(bins: int, dtype: torch.dtype, *, total: bool = True, transposed: bool = False) -> list[Variant]:
        logits = torch.zeros(bins, 300, dtype=dtype).T if transposed else torch.zeros(300, bins, dtype=dtype)
        factor = torch.ones(()) if total else None
        reduction = Reduction(torch.ones(300), factor, 1.0, "sum" if total else "none")
        target, out = torch.zeros(300), torch.zeros(() if total else 300)
        forward = record(lambda: dfl.dfl_forward(logits, target, reduction, out))
        return forward + record(lambda: dfl.dfl_backward(out, logits, target, reduction, torch.zeros_like(logits)))

    return {
        "R=17 float32": launch(17, torch.float32),
        "R=17 bfloat16, no total": launch(17, torch.bfloat16, total=False),
        "R=33 float32": launch(33, torch.float32),
        "R=65 float32": launch(65, torch.float32),
        "R=20 float16": launch(20, torch.float16),
        "transposed R=17 float32": launch(17, torch.float32, transposed=True),
        "transposed R=65 float16": launch(65, torch.float16, transposed=True),
    }
