"""The kernels of ``dgqp`` and ``dgqp_statistics`` to compile ahead of time: the published head, and its options."""

from __future__ import annotations

import torch

from gflv2.kernels import dgqp
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BINS, CELLS, Hot, of_cells, programs
from tests.kernels.inputs import POINTS, pyramid

_LOGITS = 4 * BINS * CELLS
# CUDA: four tiles of 64 points a block, with two barriers each; eight tiles of eight units; before it the weights
# become fragments, 24·32 of 16 bytes.
FRAGMENTS = 24 * 32 / 128
HOT = [
    Hot(
        *("dgqp", "forward", "dgqp.cu", "dgqp_forward_tiles", "bfloat16ELi17ELb0E"),
        *(programs(256), 2 * _LOGITS + 4 * CELLS, _LOGITS),
        shared=20608,
        loops={"^BAR": 4 * 2, r"^LDS\.128 ": 24, r"^STS\.128 ": FRAGMENTS},
        cold=r"^LDG\.E\.U16 ",
    ),
    Hot(
        *("dgqp", "forward", "kernels/dgqp.py", "dgqp_forward_kernel", "levels R=17 bfloat16"),
        *(of_cells, 2 * _LOGITS + 4 * CELLS, _LOGITS),
        trips=4,  # steps, sides, ranks
    ),
]


def variants() -> dict[str, list[Variant]]:
    def launch(
        bins: int,
        dtype: torch.dtype,
        *,
        hidden: int = 64,
        topk: int = 4,
        variance: bool = False,
        last: bool = False,
        rows: bool = False,
    ) -> list[Variant]:
        logits = [torch.zeros(300, 4, bins, dtype=dtype)] if rows else pyramid(4 * bins, dtype, last=last)
        features = 4 * (topk + 1 + variance)
        sizes = [(hidden, features), (hidden,), (hidden,), (1,)] if hidden else []
        predictor, gradients = ([torch.zeros(size) for size in sizes] for _ in range(2))
        points = (300,) if rows else (2, POINTS)
        out = torch.zeros(points if hidden else (*points, features))
        scales = torch.zeros(len(logits))
        inputs = (logits, predictor, scales, topk, True, variance)
        wanted = ([torch.zeros_like(level) for level in logits], gradients, torch.zeros_like(scales))
        forward = record(lambda: dgqp.dgqp_forward(*inputs, out))
        return forward + record(lambda: dgqp.dgqp_backward(out, *inputs, *wanted))

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "levels R=17 bfloat16": launch(17, bf16),
        "levels R=17 float32, variance": launch(17, fp32, variance=True),
        "levels R=33 float32": launch(33, fp32),
        "levels R=65 float16, k=8": launch(65, fp16, topk=8),
        "levels R=20 bfloat16, 300 hidden units": launch(20, bf16, hidden=300),
        "channels_last R=17 float16": launch(17, fp16, last=True),
        "channels_last R=33 bfloat16, variance": launch(33, bf16, last=True, variance=True),
        "rows R=33 float32": launch(33, fp32, rows=True),
        "levels R=17 bfloat16, statistics": launch(17, bf16, hidden=0),
        "levels R=33 float32, statistics, variance": launch(33, fp32, hidden=0, variance=True),
        "channels_last R=17 bfloat16, statistics": launch(17, bf16, hidden=0, last=True),
        "rows R=65 float16, statistics, k=20": launch(65, fp16, hidden=0, topk=20, rows=True),
    }
