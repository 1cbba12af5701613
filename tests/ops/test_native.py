"""The native library itself: every instruction set, any number of threads, a forked process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import gflv2
from gflv2.ops import integral, native
from gflv2.ops.native.calling import NATIVE
from gflv2.ops.reference import integral as reference

pytestmark = pytest.mark.skipif(native.unavailable("cpu") is not None, reason=str(native.unavailable("cpu")))

SETS = native.status().get("instruction_sets", [])


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    threads, chosen = torch.get_num_threads(), native.status()["instruction_set"]
    with gflv2.use_backend("cpu"):
        yield
    native.set_instruction_set(chosen)
    torch.set_num_threads(threads)


def make_levels(bins: int, dtype: torch.dtype) -> list[Tensor]:
    """More points than a task holds, a tail shorter than a register, and a level of one point."""
    generator = torch.Generator().manual_seed(bins)
    shapes = ((30, 41), (3, 5), (1, 1))
    return [(3 * torch.randn(2, 4 * bins, *shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]


def forward_and_backward(levels: list[Tensor]) -> list[Tensor]:
    scales = torch.tensor([1.5, 0.5, -1.0], requires_grad=True)
    out = integral(levels, scales=scales, strides=[8, 16, 32])
    upstream = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, [*levels, scales], upstream)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("bins", [2, 16, 17, 33, 65])
@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set_computes_the_definition(name: str, bins: int, dtype: torch.dtype) -> None:
    native.set_instruction_set(name)
    assert native.status()["instruction_set"] == name
    levels = make_levels(bins, dtype)
    out, *gradients = forward_and_backward(levels)
    wide = [level.detach().double().requires_grad_() for level in levels]
    scales = torch.tensor([1.5, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    expected = reference.integral(wide, scales=scales, strides=[8, 16, 32])
    upstream = torch.linspace(-1, 1, out.numel()).reshape(out.shape).double()
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-3 * bins / 65)
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    for ours, true in zip(gradients, torch.autograd.grad(expected, [*wide, scales], upstream), strict=True):
        size = true.abs().max().item()
        torch.testing.assert_close(ours.double(), true, rtol=rounding + 1e-6, atol=2e-5 * size + 1e-7)


@pytest.mark.parametrize("name", SETS)
def test_threads_do_not_change_a_bit(name: str) -> None:
    native.set_instruction_set(name)
    levels = make_levels(17, torch.float32)
    torch.set_num_threads(1)
    alone = forward_and_backward(levels)
    torch.set_num_threads(3)
    assert all(map(torch.equal, alone, forward_and_backward(levels)))


def test_refuses_an_instruction_set_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="got avx1024"):
        native.set_instruction_set("avx1024")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_works_in_a_forked_process() -> None:
    levels = [level.detach() for level in make_levels(17, torch.float32)]
    torch.set_num_threads(2)
    expected = integral(levels)
    child = os.fork()
    if child == 0:  # the threads of the parent are not here; a hang would end in the alarm's signal
        import signal

        signal.alarm(60)
        os._exit(0 if torch.equal(integral(levels), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_arguments_of_the_wrong_kind_are_errors() -> None:
    missing = dict.fromkeys(["scales", "points", "point_strides"])
    given = {"logits": [torch.randn(3, 4, 17)], "projection": torch.arange(17.0), "strides": [], "offset": 0.0}
    with pytest.raises(ValueError, match="out: expected a contiguous torch.float32 tensor"):
        NATIVE.integral_forward(**given, **missing, out=torch.empty(3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="backend: expected"):
        native.unavailable("tpu")


class TestFields:
    """C++ arguments are bound by name: what is missing, unknown or of another kind is an error, not another field."""

    def fields(self) -> dict[str, object]:
        return {
            "logits": [torch.randn(1, 68, 2, 3)],
            "strides": [8.0],
            "projection": torch.arange(17.0),
            "scales": None,
            "points": None,
            "point_strides": None,
            "offset": 0.0,
            "out": torch.empty(1, 6, 4),
        }

    def call(self, **changes: object) -> Tensor:
        given = {name: value for name, value in (self.fields() | changes).items() if value is not ...}
        native.library().integral_forward((-1, 1, None), given)
        return given["out"]

    def test_all_of_them(self) -> None:
        levels = [torch.randn(1, 68, 2, 3)]
        assert torch.equal(self.call(logits=levels), integral(levels, strides=[8]))

    @pytest.mark.parametrize("name", ["logits", "strides", "projection", "scales", "offset", "out"])
    def test_a_missing_one_is_named(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"integral_forward: {name}: expected, not given"):
            self.call(**{name: ...})

    def test_an_unknown_one_is_named(self) -> None:
        with pytest.raises(ValueError, match="integral_forward: expected 8 fields, got 9: .*projektion"):
            self.call(projektion=None)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("logits", [], "logits: expected 1 to 8, got 0"),
            ("logits", [torch.randn(1, 4, 2, 3)], "bins: expected 2 to 65, got 1"),
            ("logits", [torch.zeros(1, 68, 2, 3, dtype=torch.int32)], "dtype: expected float32, .* got torch.int32"),
            ("out", torch.empty(1, 4, 6).mT, "out: expected a contiguous torch.float32 tensor"),
            ("strides", [8.0, 16.0], "strides: expected one per level, got 2"),
        ],
    )
    def test_values_out_of_range(self, name: str, value: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.call(**{name: value})

    @pytest.mark.parametrize(("name", "value"), [("projection", 1234), ("offset", "a"), ("logits", 0.5)])
    def test_values_of_another_kind(self, name: str, value: object) -> None:
        with pytest.raises((TypeError, AttributeError, RuntimeError)):
            self.call(**{name: value})


@pytest.mark.skipif(not native.build_record().get("cuda", {}).get("built"), reason="built without its CUDA part")
def test_the_cuda_part_is_loaded_and_says_whether_it_can_run() -> None:
    assert native.status()["cuda_architectures"] == native.build_record()["cuda"]["architectures"]
    problem = native.library().cuda_problem(0)
    assert isinstance(problem, str) and bool(problem) != torch.cuda.is_available()
