"""The kernels of the box losses of ``gfl_loss``, forward and backward, to compile ahead of time."""

from __future__ import annotations

import torch

from gflv2.kernels import gfl_loss
from gflv2.kernels.variants import Variant, record
from gflv2.ops.box_losses import SavedBoxLoss
from tests.kernels.hot import BINS, CELLS, LAST, Hot, of_cells, programs
from tests.kernels.inputs import POINTS, STRIDES, pyramid
from tests.kernels.launches.dgqp import FRAGMENTS

_LOGITS = 4 * BINS * CELLS
# Of the weights and gradients of the box losses nearly all points have none.
_POSITIVE = r"MUFU|^LDG\.E\.U16"
HOT = [
    Hot(
        *("gfl_loss", "forward", "gfl_loss.cu", "box_loss_kernel", "bfloat16E"),
        *(programs(128), 36 * CELLS, CELLS),
        shared=4 * (13 * 128 + 1),
        cold=_POSITIVE,
        last={r"^F2F\.F64": programs(128) / 128, **LAST},
    ),
    Hot(
        *("gfl_loss", "backward", "gfl_loss.cu", "dgqp_backward_tiles", "bfloat16ELi17ELb0E.*BoxLoss"),
        *(programs(256), 4 * _LOGITS + 4 * CELLS, _LOGITS),
        shared=49152,
        # Four tiles of 64 points, with three barriers each; eight tiles of units; four steps of 16 units, of 16 points;
        # before it the weights become fragments.
        loops={
            "^BAR": 4 * 3,
            r"^LDS\.128 ": 24,
            "^LDSM": 4,
            r"^STS\.128 ": FRAGMENTS,
            r"^STS\.64 ": 4 * 3 * 3 * 32 / 128,
        },
        cold=r"F2FP.*RZ, |^LDG\.E\.U16 |^STG\.E\.U16 ",  # of one row alone
    ),
    Hot(
        *("gfl_loss", "backward", "dgqp.cu", "dgqp_sums", ""),
        *(64 + 1 + 5, 4 * 1346 * programs(256), 1346 * programs(256)),
        warps=16,
        shared=4096,
        # The rows of a unit, of the second bias, of a scale.
        loops={"^LDG": (programs(256) / 16, programs(256) / 16, programs(256) / 512)},
    ),
    Hot(
        *("gfl_loss", "forward", "kernels/gfl_loss.py", "box_loss_forward_kernel", "levels R=17 bfloat16"),
        *(of_cells, 36 * CELLS, CELLS),
        cold=_POSITIVE,
    ),
    Hot(
        *("gfl_loss", "backward", "kernels/gfl_loss.py", "dgqp_backward_kernel", "levels R=17 bfloat16"),
        *(of_cells, 4 * _LOGITS + 4 * CELLS, _LOGITS),
        trips=4,  # steps, sides, ranks
    ),
    Hot(
        *("gfl_loss", "forward", "kernels/gfl_loss.py", "box_loss_sums_kernel", "levels R=17 bfloat16"),
        *(1, 8 * programs(64), 2 * programs(64)),
        trips=(programs(64) / 2048, programs(64) / 2048),
    ),
    Hot(
        *("gfl_loss", "backward", "kernels/gfl_loss.py", "dgqp_reduce_kernel", "levels R=17 bfloat16"),
        *(20 + 3 + 5, 4 * 22 * 64 * programs(256), 22 * 64 * programs(256)),
        trips=(programs(256) / 32,),
    ),
]


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
