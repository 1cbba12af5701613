"""The kernels of ``decode`` to compile ahead of time: the published head, and its options."""

from __future__ import annotations

import math

import torch

from gflv2.kernels import decode
from gflv2.kernels.variants import Variant, record
from tests.kernels.hot import BATCH, BINS, CELLS, CLASSES, KEPT, LEVELS, Hot, of_cells, programs
from tests.kernels.inputs import POINTS, SIZES, STRIDES, pyramid

_KEPT = [min(KEPT, level) for level in LEVELS]
_ROWS = BATCH * sum(_KEPT)
_BLOCKS = BATCH * sum(math.ceil(rows / 32) for rows in _KEPT)
_KEYS = CLASSES * 2 * CELLS + 8 * CELLS
_LARGE = [level for level in LEVELS if level > KEPT]  # of which not all points are kept
_TRITON = "R=17 bfloat16, no distributions"
HOT = [
    Hot(
        *("decode", "forward", "decode.cu", "decode_keys", "bfloat16E", programs(64), _KEYS, CLASSES * CELLS),
        shared=4 * 64 * 8,
        loops={r"^LDG\.E R": CLASSES / 4},  # of two points
        cold=r"^STG\.E\.64|^LDG\.E\.U16",  # one block clears the counts; single points
    ),
    Hot(
        *("decode", "forward", "decode.cu", "decode_scores", "bfloat16E"),
        *(_BLOCKS, 4 * CLASSES * _ROWS, CLASSES * _ROWS),
        shared=32 * 24 + 8,
        # Zeros, four at a time; cold is what a row above the threshold takes: one in a hundred of the benchmarks' is.
        loops={r"^STG\.E\.128": 32 * CLASSES / 4 / 128},
        cold=r"^LDG\.E\.U16",
    ),
    Hot(
        *("decode", "forward", "decode.cu", "decode_boxes", "bfloat16ELi17E"),
        *(_BLOCKS, 4 * (BINS * 2 + 4) * _ROWS, 4 * BINS * _ROWS),
        cold=r"^STG\.E [d\[]",  # the distribution
    ),
    Hot(
        *("decode", "forward", "decode.cu", "decode_select", "ILi2E"),
        *(BATCH * len(_LARGE), 4 * BATCH * sum(_LARGE) + 8 * BATCH * KEPT * len(_LARGE), BATCH * sum(_LARGE)),
        warps=16,
        shared=8 * 1024 + 4 * (256 * 8 + 256 + 16 + 512 + 4),
        # Three of four digits, after which one word has them; the keys of the largest level, four a load, for each
        # digit and once more; seven runs of 32 words, three of 256. Cold is what points take that share a key.
        loops={r"^STS\.128": 3 * 2, r"^LDG\.E\.128": LEVELS[0] / 2048, r"^LDS\.64": (7 * 6, 7 * 6, 3 * 9, 3 * 9)},
        cold=r"LOP3\.LUT R\d+, RZ, R\d+, RZ, 0x33|^LDG\.E [Rd]",
    ),
    Hot(
        *("decode", "forward", "kernels/decode.py", "decode_keys_kernel", _TRITON),
        *(of_cells, _KEYS, CLASSES * CELLS),
        trips=CLASSES / 16,
    ),
    Hot(
        *("decode", "forward", "kernels/decode.py", "decode_select_kernel", _TRITON, BATCH * len(LEVELS)),
        *(4 * BATCH * sum(_LARGE) + 8 * BATCH * KEPT * len(_LARGE), BATCH * sum(_LARGE)),
        trips=LEVELS[0] / 2048,
    ),
    Hot(
        *("decode", "forward", "kernels/decode.py", "decode_rank_kernel", _TRITON),
        *(BATCH * sum(math.ceil(rows / 64) for rows in _KEPT), 16 * _ROWS, _ROWS),
        trips=KEPT / 64,
    ),
    Hot(
        *("decode", "forward", "kernels/decode.py", "decode_scores_kernel", _TRITON),
        *(_BLOCKS, 6 * CLASSES * _ROWS, CLASSES * _ROWS),
        trips=CLASSES / 16,
    ),
    Hot(
        *("decode", "forward", "kernels/decode.py", "decode_boxes_kernel", _TRITON),
        *(_BLOCKS, 4 * (BINS * 2 + 4) * _ROWS, 4 * BINS * _ROWS),
    ),
]


def variants() -> dict[str, list[Variant]]:
    def launch(
        bins: int,
        class_dtype: torch.dtype,
        box_dtype: torch.dtype,
        *,
        pre_topk: int = 100,
        last: bool = False,
        everything: bool = True,
        wanted: bool = True,
    ) -> list[Variant]:
        class_logits, box_logits = pyramid(80, class_dtype, last=last), pyramid(4 * bins, box_dtype, last=last)
        rows = sum(min(pre_topk, height * width) for height, width in SIZES)
        options = (torch.zeros(2, POINTS), torch.zeros(5), torch.zeros(2, 2), torch.zeros(2, 2))
        quality, scales, image_sizes, scale_factors = options if everything else (None,) * 4
        small = (quality, torch.zeros(bins), scales, image_sizes, scale_factors)
        points, counts = torch.zeros(2, rows, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        outputs = (torch.zeros(2, rows, 4), torch.zeros(2, rows, 80), points, counts)
        distributions = torch.zeros(2, rows, 4, bins) if everything and wanted else None
        settings = (STRIDES, pre_topk, 0.05, 0.0)
        return record(lambda: decode.decode(class_logits, box_logits, *small, *settings, *outputs, distributions))

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        # First: of equal launches the first one is compiled, and forecast.
        "R=17 bfloat16, no distributions": launch(17, bf16, bf16, wanted=False),
        "R=17 bfloat16, box logits float32": launch(17, bf16, fp32),
        "R=17 float32, without options": launch(17, fp32, fp32, everything=False),
        "R=33 float32, nothing to select": launch(33, fp32, fp32, pre_topk=4096),
        "R=65 float16": launch(65, fp16, fp16),
        "R=20 float16, channels_last": launch(20, fp16, fp16, last=True),
        "R=17 bfloat16, channels_last": launch(17, bf16, bf16, last=True),
    }
