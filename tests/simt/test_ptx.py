"""The instructions of gflv2/ptx.hpp against their description: the emulated twins, and on a GPU themselves.

Both answer to the same rules, so that a twin never promises more than the instruction.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.simt.building import ROOT, compiler

SOURCE = Path(__file__).parent / "instructions.cu"
SIMT = ROOT / "csrc" / "simt"
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
NAN, INF = float("nan"), float("inf")
WORDS = 12  # of an answer
# Zeros, subnormals of float32 and of the 16-bit types, the ends of all ranges, ties of rounding and their neighbours.
SPECIAL = [
    *[0.0, 1.0, 2.0, 0.5, 3.0, 1e-45, 1.1e-38, 1.1754944e-38, 3.4028235e38, 2.0**126, 2.0**127, INF, NAN],
    *[6e-8, 2.9802322e-8, 2.9802326e-8, 8.9406967e-8, 6.1035156e-5, 6.1e-5, 65504.0, 65519.996, 65520.0, 65536.0],
    *[1.00390625, 1.0039063692092896, 1.01171875, 1.00048828125, 1.000488400459, 1.00146484375, 3.3961775e38],
    *[126.0, 127.5, 128.0, 149.0, 150.0, 126.5, 87.0, 1e9],
]

pytestmark = pytest.mark.slow


def emulated(folder: Path, given: Path = SOURCE) -> Path:
    flags = ["-std=c++20", "-O1", "-DGFLV2_SIMT", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread"]
    engine = [str(SIMT / "block.cpp"), str(SIMT / "fibers.cpp")]
    program = folder / given.stem
    source = ["-x", "c++", str(given), *engine]
    subprocess.run([str(compiler()), *flags, *INCLUDES, *source, "-o", str(program)], check=True)
    return program


def on_gpu(folder: Path, given: Path = SOURCE) -> Path:
    program = folder / given.stem
    flags = ["-std=c++17", "-O3", "-fmad=false", "-arch=native"]
    subprocess.run(["nvcc", *flags, *INCLUDES, str(given), "-o", str(program)], check=True)
    return program


BUILDS = [
    pytest.param(emulated, id="twins", marks=pytest.mark.skipif(compiler() is None, reason="no C++ compiler")),
    pytest.param(
        on_gpu,
        id="gpu",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available() or shutil.which("nvcc") is None, reason="there is no GPU, or no nvcc"
        ),
    ),
]


@pytest.fixture(scope="module", params=BUILDS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("ptx"))


def pairs() -> tuple[Tensor, Tensor]:
    """Every special number with every other, and numbers of all sizes."""
    special = torch.tensor(SPECIAL + [-x for x in SPECIAL])
    a, b = torch.meshgrid(special, special, indexing="ij")
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2, 20000), generator=generator).to(torch.int32).view(torch.float32)
    near = torch.randn(2, 20000, generator=generator) * 20
    return torch.cat([a.flatten(), bits[0], near[0]]), torch.cat([b.flatten(), bits[1], near[1]])


@pytest.fixture(scope="module")
def answers(program: Path) -> Tensor:
    """(pairs, WORDS)."""
    given = torch.stack(pairs(), 1).contiguous()
    run = subprocess.run([program], input=given.numpy().tobytes(), stdout=subprocess.PIPE, check=True)
    return torch.frombuffer(bytearray(run.stdout), dtype=torch.int32).view(-1, WORDS)


def flushed(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 2.0**-126, x * 0, x)


def assert_within(found: Tensor, exact: Tensor, ulps: int) -> None:
    """`exact` is float64; a result below the smallest normal number is 0, and may be it just beside."""
    size, edge = exact.abs(), 2.0**-126
    usual = (size > edge * (1 + 1e-6)) & (size < 2.0**127.9)
    ulp = torch.exp2(torch.floor(torch.log2(torch.maximum(size, found.double().abs())[usual])) - 23)
    error = (found.double()[usual] - exact[usual]).abs() / ulp
    # One half more: the twin moves a number that is rounded already.
    assert bool((error <= ulps + 0.5).all()), error.max()
    assert bool((found[size < edge * (1 - 1e-6)] == 0).all())
    assert torch.equal(found[exact.isnan()].isnan(), exact[exact.isnan()].isnan())
    assert torch.equal(found[exact.isinf()].double(), exact[exact.isinf()])


def test_maximum_and_minimum_keep_a_nan_in_either_place(answers: Tensor) -> None:
    a, b = pairs()
    for column, of in enumerate((torch.maximum, torch.minimum)):
        found, want = answers[:, column].contiguous().view(torch.float32), of(a, b)
        assert torch.equal(found.isnan(), want.isnan())
        assert torch.equal(found[~want.isnan()], want[~want.isnan()])


def test_power_of_two(answers: Tensor) -> None:
    a, _ = pairs()
    found = answers[:, 2].contiguous().view(torch.float32)
    assert_within(found, torch.exp2(flushed(a).double()), 2)
    assert bool((found[flushed(a) == 0] == 1).all())


def test_quotient(answers: Tensor) -> None:
    a, b = map(flushed, pairs())
    found = answers[:, 3].contiguous().view(torch.float32)
    far = (b.abs() > 2.0**126) & (b.abs() < INF)
    assert_within(found[~far], a[~far].double() / b[~far].double(), 2)
    assert bool((found[far & a.isfinite()] == 0).all())
    assert bool(found[far & ~a.isfinite()].isnan().all())


def test_narrowing_is_that_of_torch(answers: Tensor) -> None:
    a, b = pairs()
    halves = answers.contiguous().view(torch.int16).view(-1, WORDS, 2)
    for dtype, found in (
        (torch.bfloat16, [halves[:, 4, 0], halves[:, 4, 1], halves[:, 6, 0]]),
        (torch.float16, [halves[:, 5, 0], halves[:, 5, 1], halves[:, 6, 1]]),
    ):
        for bits, given in zip(found, (a, b, a), strict=True):
            value, want = bits.contiguous().view(dtype), given.to(dtype)
            assert torch.equal(value.isnan(), want.isnan())
            number = ~want.isnan()
            assert torch.equal(value.view(torch.int16)[number], want.view(torch.int16)[number])


@pytest.mark.parametrize(("column", "dtype"), [(7, torch.bfloat16), (8, torch.float16)])
def test_maximum_of_a_pair_keeps_a_nan(answers: Tensor, column: int, dtype: torch.dtype) -> None:
    """Of (a, b) and (b, −a), rounded: the larger ones."""
    a, b = (item.to(dtype).float() for item in pairs())
    halves = answers.contiguous().view(torch.int16).view(-1, WORDS, 2)[:, column]
    for half, (x, y) in enumerate([(a, b), (b, -a)]):
        found, want = halves[:, half].contiguous().view(dtype).float(), torch.maximum(x, y)
        assert torch.equal(found.isnan(), want.isnan())
        assert torch.equal(found[~want.isnan()], want[~want.isnan()])


@pytest.mark.parametrize(("column", "dtype"), [(9, torch.bfloat16), (10, torch.float16)])
def test_maximum_of_a_pair_prefers_a_number(answers: Tensor, column: int, dtype: torch.dtype) -> None:
    """Of (a, b) and (b, −a), rounded: the larger ones; a NaN alone where both are."""
    a, b = (item.to(dtype).float() for item in pairs())
    halves = answers.contiguous().view(torch.int16).view(-1, WORDS, 2)[:, column]
    for half, (x, y) in enumerate([(a, b), (b, -a)]):
        found, want = halves[:, half].contiguous().view(dtype).float(), torch.fmax(x, y)
        assert torch.equal(found.isnan(), want.isnan())
        assert torch.equal(found[~want.isnan()], want[~want.isnan()])


def test_bytes_of_a_word(answers: Tensor) -> None:
    """From the lowest on; the answer has them the other way round."""
    a, _ = pairs()
    assert torch.equal(
        answers[:, 11].contiguous().view(torch.uint8).view(-1, 4).flip(1), a.view(torch.uint8).view(-1, 4)
    )
