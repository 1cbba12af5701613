"""The products of gflv2/mma.hpp against float64: those of the emulated twins, and on a GPU of its tensor cores."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.simt.test_ptx import BUILDS

SOURCE = Path(__file__).parent / "products.cu"
EPSILON = torch.finfo(torch.float32).eps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BUILDS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("mma"), SOURCE)


def apply(program: Path, left: Tensor, right: Tensor, binary: Tensor, other: Tensor) -> Tensor:
    """(problems, 3, 16, 8)."""
    given = torch.cat([item.flatten(1) for item in (left, right, binary, other)], 1).contiguous()
    run = subprocess.run([program], input=given.numpy().tobytes(), stdout=subprocess.PIPE, check=True)
    return torch.frombuffer(bytearray(run.stdout), dtype=torch.float32).view(-1, 3, 16, 8)


def factors(problems: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers of all sizes within ``spread`` powers of two, and of both signs; ones and zeros."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        sizes = torch.exp2((torch.rand(problems, *shape, generator=generator) - 0.5) * spread)
        return torch.randn(problems, *shape, generator=generator) * sizes

    binary = torch.randint(0, 2, (problems, 16, 16), generator=generator).float()
    return numbers(24, 16), numbers(24, 8), binary, numbers(16, 8)


@pytest.mark.parametrize("spread", [0.0, 20.0])
def test_products_have_the_precision_of_float32(program: Path, spread: float) -> None:
    """An element is wrong by a few units of the sum of its terms' magnitudes: 24 terms of float32 may be by 24."""
    left, right, binary, other = factors(64, spread)
    found = apply(program, left, right, binary, other).double()
    turned = left.double().transpose(1, 2)
    for place, (a, b) in enumerate([(turned, right), (binary, other), (binary.transpose(1, 2), other)]):
        exact = a.double() @ b.double()
        error = (found[:, place] - exact).abs() / (a.double().abs() @ b.double().abs()).clamp_min(1e-300)
        assert float(error.max()) < 6 * EPSILON, place
        assert float(error.mean()) < 1 * EPSILON, place


def test_a_nan_stays_in_its_row(program: Path) -> None:
    """Points are rows: one that has no number must not spoil another."""
    left, right, binary, other = factors(1, 0.0)
    left[0, 5, 11] = float("nan")
    found = apply(program, left, right, binary, other)[0, 0]
    assert bool(found[11].isnan().all())
    assert bool(found[[row for row in range(16) if row != 11]].isfinite().all())


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinite_number_gives_infinity_in_its_column(program: Path, value: float) -> None:
    left, right, binary, other = factors(1, 0.0)
    left[0, 5] = left[0, 5].to(torch.bfloat16).float()  # its low parts are 0
    right[0, 5, 3] = value
    found = apply(program, left, right, binary, other)[0, 0]
    assert torch.equal(found[:, 3], left[0, 5] * value)
    assert bool(found[:, [column for column in range(8) if column != 3]].isfinite().all())


def test_zeros_give_zero(program: Path) -> None:
    left, right, binary, other = (torch.zeros_like(item) for item in factors(1, 0.0))
    found = apply(program, left, right, binary, other)
    # A unit is active where the sign of its turned sum is set: that of zero must not be.
    assert bool((found.view(torch.int32) == 0).all())
