"""The Triton kernels of ``atss`` compile without a fused product, and once for all sizes."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import atss, variants  # noqa: E402
from tests.kernels.inputs import STRIDES, fifty_sizes, names  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402


def all_variants() -> dict[str, list[variants.Variant]]:
    return variants_of("atss")


def parts(found: list[variants.Variant]) -> list[str]:
    return [name.removeprefix("atss_").removesuffix("_kernel") for name in names(found)]


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in all_variants().items():
        ignored = ["ignored"] if "ignore" in name else []
        assert parts(found) == ["table", *ignored, "nearest", "overlap", "claim", "finish"], name


def test_no_launch_may_fuse_a_product_into_a_sum() -> None:
    """It would have other bits. The compile matrix looks for one in what was compiled."""
    for found in all_variants().values():
        assert all(variant.options["enable_fp_fusion"] is False for variant in found)


@pytest.mark.slow
def test_divisions_that_count_are_exact() -> None:
    """IoU, IoF and threshold: correctly rounded. Where a window begins may be approximate."""
    found = all_variants()["grid, ignore boxes, counts"]
    for variant, name in zip(found, parts(found), strict=True):
        code = variant.compile(90).asm["ptx"]
        kinds = set(re.findall(r"\b(?:div|sqrt|rcp)\.\S*f(?:32|64)\b", code))
        expected = {
            "ignored": {"div.rn.f32"},
            "nearest": {"div.full.f32"},
            "overlap": {"div.rn.f32"},
            "claim": {"div.rn.f64", "sqrt.rn.f64"},
        }
        assert kinds == expected.get(name, set()), f"{name}: {kinds}"


def test_fifty_sizes_compile_once() -> None:
    """Image sizes, batches and numbers of boxes; 1 and multiples of 16 among them."""
    counts: Counter[variants.Variant] = Counter()
    for index, batch, sizes in fifty_sizes():
        shapes, points = [side for size in sizes for side in size], sum(a * b for a, b in sizes)
        boxes = [torch.zeros((index * (image + 1)) % 40, 4) for image in range(batch)]
        boxes[0] = torch.zeros(1 + index, 4)
        labels = [torch.zeros(len(image), dtype=torch.int64) for image in boxes]
        outputs = (torch.zeros(batch, points, dtype=torch.int64), torch.zeros(batch, points))
        settings = (STRIDES, 9, 8.0, 0.0, 0.0)
        arguments = (boxes, labels, None, [], [], shapes, [], *settings, *outputs, torch.zeros_like(outputs[0]))
        counts.update(variants.record(lambda arguments=arguments: atss.atss(*arguments)))
    assert sorted(parts(list(counts))) == ["claim", "finish", "nearest", "overlap", "table"]
