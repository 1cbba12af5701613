"""The Triton kernels of ``decode`` compile once for all sizes. (That none spills: the compile matrix.)"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import decode, variants  # noqa: E402
from tests.kernels.inputs import STRIDES, fifty_sizes, names, pyramid  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402


def parts(found: list[variants.Variant]) -> list[str]:
    return [name.removeprefix("decode_").removesuffix("_kernel") for name in names(found)]


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in variants_of("decode").items():
        select = [] if "nothing to select" in name else ["select"]
        assert parts(found) == ["keys", *select, "rank", "scores", "boxes"], name


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_sizes_compile_once(last: bool) -> None:
    """Sizes, batches, classes, points kept, thresholds; 1 and multiples of 16 among them."""
    counts: Counter[variants.Variant] = Counter()
    for index, batch, sizes in fifty_sizes():
        classes, pre_topk = (2, 16, 80, 81, 33)[index % 5], (1, 16, 100, 300, 33)[index // 5 % 5]
        kind = {"dtype": torch.float32, "last": last, "batch": batch, "sizes": sizes}
        levels = [pyramid(channels, **kind) for channels in (classes, 68)]
        points = sum(a * b for a, b in sizes)
        rows = sum(min(pre_topk, a * b) for a, b in sizes)
        small = (torch.empty(batch, points), torch.empty(17), torch.empty(5), torch.empty(batch, 2), None)
        settings = (STRIDES, pre_topk, index / 50, index % 2 / 2)
        whole = (torch.empty(batch, rows, dtype=torch.int64), torch.empty(batch, dtype=torch.int64))
        outputs = (torch.empty(batch, rows, 4), torch.empty(batch, rows, classes), *whole, None)
        call = (*levels, *small, *settings, *outputs)
        counts.update(variants.record(lambda call=call: decode.decode(*call)))
    assert sorted(parts(list(counts))) == ["boxes", "keys", "rank", "scores", "select"]
    assert set(counts.values()) == {50}
