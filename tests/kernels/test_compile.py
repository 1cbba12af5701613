"""The kernels compile for every architecture of a release, without spilling, and no oftener than needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

import triton  # noqa: E402

from gflv2.kernels import integral, variants  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CUDA_SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = variants.ARCHITECTURES


def all_variants() -> dict[str, list[variants.Variant]]:
    return variants_of("integral")


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in all_variants().items():
        kernels = [variant.kernel.rsplit(".", 1)[-1] for variant in found]
        assert kernels == ["integral_forward_kernel", "integral_backward_kernel", "integral_reduce_kernel"], name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_triton_kernels_compile_without_spills(architecture: int, tmp_path: Path) -> None:
    for name, found in all_variants().items():
        for variant in found:
            cubin = tmp_path / "kernel.cubin"
            cubin.write_bytes(variant.compile(architecture).asm["cubin"])
            usage = resources(cubin)
            # Neither function calls nor arrays: a stack, or local memory, can only be spilled registers.
            assert usage["STACK"] == usage["LOCAL"] == 0, (
                f"{variant.kernel} ({name}) spills on sm_{architecture}: {usage}"
            )
            assert 0 < usage["REG"] <= 255


def resources(cubin: Path) -> dict[str, int]:
    """Registers, stack, shared and local memory of the one kernel in a cubin."""
    command = [str(BINARIES / "cuobjdump"), "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    return dict(zip(("REG", "STACK", "SHARED", "LOCAL"), map(int, found.groups()), strict=True))


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


def pyramid(batch: int, height: int, width: int, *, last: bool) -> list[torch.Tensor]:
    form = torch.channels_last if last else torch.contiguous_format
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
    return [torch.empty(batch, 68, *size, dtype=torch.bfloat16).to(memory_format=form) for size in sizes]


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_image_sizes_compile_once(last: bool) -> None:
    """Counted in Triton's own cache keys: sizes of 1, multiples of 16 and odd ones, several batches."""
    counts: Counter[variants.Variant] = Counter()
    for index in range(50):
        batch, height, width = 1 + index % 5, 129 + 32 * index + index % 3, 161 + 13 * index
        counts.update(launches(pyramid(batch, height, width, last=last)))
    assert sum(counts.values()) == 150
    assert {variant.kernel.rsplit(".", 1)[-1]: count for variant, count in counts.items()} == {
        "integral_forward_kernel": 50,
        "integral_backward_kernel": 50,
        "integral_reduce_kernel": 50,
    }


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
    base = pyramid(2, 256, 320, last=False)
    changed = [
        [level[:, :36] for level in base],
        [level.float() for level in base],
        pyramid(2, 256, 320, last=True),
    ]
    first = {launches(base)[0]}
    for levels in changed:
        first.add(launches(levels)[0])
    assert len(first) == 4


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.name)
def test_cuda_sources_compile_without_spills(source: Path, architecture: int, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    options = ["-std=c++17", "-O3", "-fmad=false", f"-I{CSRC}", f"-I{CSRC / 'include'}"]  # as in CMakeLists.txt
    defines = ["-DGFLV2_HAS_CUDA", f'-DGFLV2_CUDA_ARCHITECTURES="{architecture}"']
    target = [f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "kernel.cubin")]
    run = subprocess.run([nvcc, *options, *defines, *target, str(source)], capture_output=True, text=True)
    if "Unsupported gpu architecture" in run.stderr:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    assert run.returncode == 0, run.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", run.stderr)
    assert frames, run.stderr
    assert all(set(frame) == {"0"} for frame in frames), run.stderr


def test_every_cuda_source_is_found() -> None:
    assert CUDA_SOURCES, f"no .cu file in {CSRC / 'cuda'}"
