"""The Triton kernels of ``decode`` compile once for all sizes. (That none spills: the compile matrix.)"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import decode, variants  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402


def names(found: list[variants.Variant]) -> list[str]:
    return [variant.kernel.rsplit(".", 1)[-1].removeprefix("decode_").removesuffix("_kernel") for variant in found]


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in variants_of("decode").items():
        select = [] if "nothing to select" in name else ["select"]
        assert names(found) == ["keys", *select, "rank", "scores", "boxes"], name


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_sizes_compile_once(last: bool) -> None:
    """Image sizes, batches, classes, points kept, thresholds; 1 and multiples of 16 among them."""
    form = torch.channels_last if last else torch.contiguous_format
    counts: Counter[variants.Variant] = Counter()
    for index in range(50):
        batch, height, width = 1 + index % 5, 129 + 32 * index + index % 3, 161 + 13 * index
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
        classes, pre_topk = (2, 16, 80, 81, 33)[index % 5], (1, 16, 100, 300, 33)[index // 5 % 5]
        levels = [
            [torch.empty(batch, channels, *size).to(memory_format=form) for size in sizes] for channels in (classes, 68)
        ]
        points = sum(a * b for a, b in sizes)
        rows = sum(min(pre_topk, a * b) for a, b in sizes)
        small = (torch.empty(batch, points), torch.empty(17), torch.empty(5), torch.empty(batch, 2), None)
        settings = ([8.0, 16.0, 32.0, 64.0, 128.0], pre_topk, index / 50, index % 2 / 2)
        whole = (torch.empty(batch, rows, dtype=torch.int64), torch.empty(batch, dtype=torch.int64))
        outputs = (torch.empty(batch, rows, 4), torch.empty(batch, rows, classes), *whole, None)
        call = (*levels, *small, *settings, *outputs)
        counts.update(variants.record(lambda call=call: decode.decode(*call)))
    assert sorted(names(list(counts))) == ["boxes", "keys", "rank", "scores", "select"]
    assert set(counts.values()) == {50}
