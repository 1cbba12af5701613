"""Triton compiles the kernels of ``integral`` with good accesses, and no oftener than needed."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import integral, variants  # noqa: E402
from tests.kernels.inputs import fifty_sizes, names, pyramid  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402

KERNELS = ["integral_forward_kernel", "integral_backward_kernel", "integral_reduce_kernel"]


def all_variants() -> dict[str, list[variants.Variant]]:
    return variants_of("integral")


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in all_variants().items():
        assert names(found) == KERNELS, name


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("levels R=17 bfloat16", [1, 32]),  # tile (bins, cells): a warp reads 32 neighbouring cells
        ("channels_last R=17 float16", [2, 16]),  # tile (cells, bins): it reads the 16 bins of two cells
        ("rows R=33 float32", [1, 32]),  # it reads 32 bins of a row
    ],
)
def test_a_warp_reads_neighbouring_elements(name: str, threads: list[int]) -> None:
    for variant in all_variants()[name][:2]:
        code = variant.compile(90).asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<(.*)>$", code, re.M))
        element = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[name.split()[-1]]
        accesses = re.findall(rf"tt\.(?:load|store) .* : tensor<\d+x\d+x!tt\.ptr<{element}>, (#\w+)>", code)
        logits = [layouts[layout] for layout in accesses if "x4x!tt.ptr" not in layout]
        assert logits, code
        tiles = [text for text in logits if f"threadsPerWarp = {threads}" in text and "order = [1, 0]" in text]
        # Forward's one other two-dimensional access is the store of the result, float32, four sides a cell.
        others = len(logits) - len(tiles)
        assert tiles and others <= (1 if element == "f32" and "forward" in variant.kernel else 0), logits


def launches(tensors: list[torch.Tensor], *, learned: bool = True) -> list[variants.Variant]:
    """What forward and backward would launch for these levels or rows."""
    rows = tensors[0].dim() == 3
    bins = tensors[0].shape[2] if rows else tensors[0].shape[1] // 4
    count = sum(t.shape[0] if rows else t.shape[2] * t.shape[3] for t in tensors)
    shape = (count, 4) if rows else (tensors[0].shape[0], count, 4)
    strides = [] if rows else [8.0 * 2**level for level in range(len(tensors))]
    inputs = (tensors, torch.zeros(bins), torch.ones(len(tensors)), None, None, strides, 0.0)
    gradients = ([torch.empty_like(t) for t in tensors], torch.zeros(bins), torch.zeros(len(tensors)))

    def call() -> None:
        integral.integral_forward(*inputs, torch.empty(shape))
        integral.integral_backward(torch.empty(shape), *inputs, *gradients)

    return variants.record(call)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_image_sizes_compile_once(last: bool) -> None:
    """Counted in Triton's own cache keys: sizes of 1, multiples of 16 and odd ones, several batches."""
    counts: Counter[variants.Variant] = Counter()
    for _, batch, sizes in fifty_sizes():
        counts.update(launches(pyramid(68, torch.bfloat16, last=last, batch=batch, sizes=sizes)))
    assert sum(counts.values()) == 150
    assert dict(zip(names(counts), counts.values(), strict=True)) == dict.fromkeys(KERNELS, 50)


def test_fifty_row_counts_and_strides_compile_once() -> None:
    found: set[variants.Variant] = set()
    for index in range(50):
        rows, extra = 1 + 37 * index, index % 17
        # The row stride and the alignment of the first element change with the number of further columns.
        found.update(launches([torch.empty(rows, 4 * 33 + extra)[:, extra:].unflatten(1, (4, 33))]))
    assert len(found) == 3, sorted(variant.kernel for variant in found)


def test_a_stride_of_more_than_32_bits_compiles_no_variant() -> None:
    small = torch.empty(2, 68, 4, 4, device="meta")
    large = torch.empty_strided((2, 68, 4, 4), (2**40, 16, 4, 1), device="meta")
    keys = []
    for level in (small, large):
        out = torch.empty(2, 16, 4)
        logits = [_Pretended(level)]
        arguments = (logits, torch.zeros(17), None, None, None, [], 0.0, out)
        keys.append(variants.record(lambda arguments=arguments: integral.integral_forward(*arguments)))
    assert keys[0] == keys[1]


class _Pretended:
    """A tensor too large for this machine, as far as a launch looks at it: shape, strides, dtype and an address."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype, self.stride, self.dim = tensor.shape, tensor.dtype, tensor.stride, tensor.dim

    def data_ptr(self) -> int:
        return 4096


def test_what_is_compiled_in_does_compile_anew() -> None:
    """The counter can count: other bins, dtype or layout are other variants."""
    base = pyramid(68, torch.bfloat16)
    changed = [
        [level[:, :36] for level in base],
        [level.float() for level in base],
        pyramid(68, torch.bfloat16, last=True),
    ]
    first = {launches(base)[0]}
    for levels in changed:
        first.add(launches(levels)[0])
    assert len(first) == 4
