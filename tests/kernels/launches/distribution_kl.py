"""The kernels of ``distribution_kl`` to compile ahead of time: R = 17, 33, the widest and a masked R, both orders."""

from __future__ import annotations

import torch

from gflv2.kernels import distribution_kl as kernels
from gflv2.kernels.variants import Variant, record
from gflv2.ops.reduction import Reduction


def variants() -> dict[str, list[Variant]]:
    def launch(
        bins: int,
        dtype: torch.dtype,
        *,
        teacher: torch.dtype | None = None,
        total: bool = True,
        transposed: bool = False,
    ) -> list[Variant]:
        def logits(kind: torch.dtype) -> torch.Tensor:
            return torch.zeros(bins, 300, dtype=kind).T if transposed else torch.zeros(300, bins, dtype=kind)

        factor = torch.ones(()) if total else None
        reduction = Reduction(torch.ones(300), factor, 1.0, "sum" if total else "none")
        inputs = (logits(dtype), logits(teacher or dtype), 10.0, reduction)
        out, grad = torch.zeros(() if total else 300), torch.zeros_like(inputs[0])
        forward = record(lambda: kernels.distribution_kl_forward(*inputs, out))
        return forward + record(lambda: kernels.distribution_kl_backward(out, *inputs, grad))

    return {
        "R=17 float32": launch(17, torch.float32),
        "R=17 bfloat16, teacher float32, no total": launch(17, torch.bfloat16, teacher=torch.float32, total=False),
        "R=33 float32": launch(33, torch.float32),
        "R=65 float32": launch(65, torch.float32),
        "R=20 float16": launch(20, torch.float16),
        "transposed R=17 float32": launch(17, torch.float32, transposed=True),
        "transposed R=65 float16": launch(65, torch.float16, transposed=True),
    }
