"""The Triton kernels of ``task_aligned`` compile without a fused product, and once for all sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import task_aligned, variants  # noqa: E402
from tests.kernels.inputs import names  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402


def parts(found: list[variants.Variant]) -> list[str]:
    return [name.removeprefix("task_aligned_").removesuffix("_kernel") for name in names(found)]


def test_the_listed_variants_are_those_that_launch() -> None:
    keeping = {"one point a box, counts", "32 candidates, other exponents"}
    for name, found in variants_of("task_aligned").items():
        kept = ["keep"] if name in keeping else []
        assert parts(found) == ["atss_table", "claim", "settle", *kept, "finish"], name


def test_no_launch_may_fuse_a_product_into_a_sum() -> None:
    """It would have other bits. The compile matrix looks for one in what was compiled."""
    for found in variants_of("task_aligned").values():
        assert all(variant.options["enable_fp_fusion"] is False for variant in found)


def test_thirty_sizes_compile_once() -> None:
    """Points, classes, batches and numbers of boxes; 1 and multiples of 16 among them."""
    counts: Counter[variants.Variant] = Counter()
    for size in range(1, 31):
        batch, total, classes = 1 + size % 4, 16 * size if size % 2 else size, 1 + (size * 5) % 33
        boxes = [torch.zeros(1 + (size * (image + 1)) % 40, 4) for image in range(batch)]
        labels = [torch.zeros(len(image), dtype=torch.int64) for image in boxes]
        index, iou = torch.zeros(batch, total, dtype=torch.int64), torch.zeros(batch, total)
        inputs = (torch.zeros(batch, total, classes), torch.zeros(batch, total, 4), torch.zeros(total, 2))
        settings = (10, 0.5, 6.0, True, True, 1e-9 * size, 16.0 + size, True, True, 0, True, 1e-9)
        given = (*inputs, boxes, labels, None, *settings, index, iou, torch.zeros_like(index), torch.zeros_like(iou))
        with variants.recording() as found:
            task_aligned.task_aligned(*given)
        counts.update(found)
    assert sorted(parts(list(counts))) == ["atss_table", "claim", "finish", "settle"]
