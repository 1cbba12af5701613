"""The Triton kernels of ``dynamic_soft_label`` compile without a fused product, and once for all sizes."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import dynamic_soft_label, variants  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402


def parts(found: list[variants.Variant]) -> list[str]:
    names = [variant.kernel.rpartition(".")[2] for variant in found]
    return [name.removeprefix("dynamic_soft_label_").removesuffix("_kernel") for name in names]


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in variants_of("dynamic_soft_label").items():
        assert parts(found) == ["atss_table", "points", "boxes", "finish"], name


def test_no_launch_may_fuse_a_product_into_a_sum() -> None:
    """It would have other bits. The compile matrix looks for one in what was compiled."""
    for found in variants_of("dynamic_soft_label").values():
        assert all(variant.options["enable_fp_fusion"] is False for variant in found)


@pytest.mark.slow
def test_divisions_and_roots_are_exact() -> None:
    found = variants_of("dynamic_soft_label")["rtmdet"]
    for variant, name in zip(found, parts(found), strict=True):
        code = variant.compile(90).asm["ptx"]
        kinds = set(re.findall(r"\b(?:div|sqrt|rcp)\.\S*f(?:32|64)\b", code))
        expected = {"points": {"div.rn.f32"}, "boxes": {"div.rn.f32", "sqrt.rn.f32"}}
        expected["finish"] = expected["boxes"]
        assert kinds == expected.get(name, set()), f"{name}: {kinds}"
        assert not re.search(r"\bfma\.rn\.f(?:32|64)\b", code), name


def test_thirty_sizes_compile_once() -> None:
    """Points, classes, batches and numbers of boxes; 1 and multiples of 16 among them."""
    counts: Counter[variants.Variant] = Counter()
    for size in range(1, 31):
        batch, total, classes = 1 + size % 4, 16 * size if size % 2 else size, 1 + (size * 5) % 33
        boxes = [torch.zeros(1 + (size * (image + 1)) % 40, 4) for image in range(batch)]
        labels = [torch.zeros(len(image), dtype=torch.int64) for image in boxes]
        index, iou = torch.zeros(batch, total, dtype=torch.int64), torch.zeros(batch, total)
        inputs = (torch.zeros(batch, total, classes), torch.zeros(batch, total, 4), torch.zeros(total, 2))
        rest = (torch.zeros(total), boxes, labels, None, 13, 1.0 + size, 2.0, 3.0, "rtmdet")
        given = (*inputs, *rest, index, iou, torch.zeros_like(index))
        with variants.recording() as found:
            dynamic_soft_label.dynamic_soft_label(*given)
        counts.update(found)
    assert len(counts) == 4
