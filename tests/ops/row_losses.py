"""What the tests of `dfl`, `giou` and `iou` share: a call with its arguments, and what every such operation promises.

A test module gives its operation and a function that makes calls, and inherits the promises:

    @pytest.mark.parametrize("backend", backends_of("dfl"))
    class TestPromises(DFL, Promises): ...
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import gflv2
from gflv2.ops.checks import compute_dtype
from tests.ops.parity import assert_parity
from tests.ops.under_test import running

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# weight given?, average factor, reduction
REDUCTIONS = [
    *itertools.product([False, True], [None], ["none", "sum", "mean"]),
    *itertools.product([False, True], ["number", "tensor"], ["none", "mean"]),
]


@dataclass(frozen=True)
class Reduced:
    """How the losses of a case are reduced."""

    weighted: bool = True
    factor: str | None = "tensor"  # or "number"
    reduction: str = "mean"

    def keywords(self, rows: int, dtype: torch.dtype, draw: torch.Generator) -> dict[str, Any]:
        weight = torch.rand(rows, generator=draw).to(dtype) if self.weighted else None
        factor = 0.3 * rows + 1 if self.factor else None
        return {
            "weight": weight,
            "avg_factor": torch.tensor(factor, dtype=dtype) if self.factor == "tensor" else factor,
            "reduction": self.reduction,
        }


@dataclass(frozen=True)
class Call:
    """One call of an operation: tensors, keywords, and which of the tensors get a gradient."""

    tensors: dict[str, Tensor]
    keywords: dict[str, Any] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()

    def __call__(self, function: Callable[..., Tensor]) -> Tensor:
        return function(*self.tensors.values(), **self.keywords)

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """Every tensor changed, those among the keywords too."""
        tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        keywords = {name: change(v) if isinstance(v, Tensor) else v for name, v in self.keywords.items()}
        return replace(self, tensors=tensors, keywords=keywords)

    def to(self, device: torch.device) -> Call:
        return self.map(lambda tensor: tensor.to(device))

    def converted(self, dtype: torch.dtype) -> Call:
        """The same values on the CPU in another dtype; whole numbers stay whole."""
        return self.map(lambda t: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype))

    def trained(self) -> list[Tensor]:
        """The tensors that get a gradient, told so."""
        return [self.tensors[name].requires_grad_() for name in self.leaves]


def cotangent(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(99)).to(out)


def results(
    function: Callable[..., Tensor],
    call: Call,
    *,
    scale: float = 1.0,
    upstream: Callable[[Tensor], Tensor] = cotangent,
) -> dict[str, Tensor]:
    """The output and every gradient of <output, a fixed cotangent>, by name."""
    leaves = call.trained()
    out = call(function)
    gradients = torch.autograd.grad(out, leaves, upstream(out) * scale)
    return {"output": out.detach()} | {f"grad of {name}": g for name, g in zip(call.leaves, gradients, strict=True)}


def upstream_of_rows(call: Call, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, in float64: of each row's factor in the output, of the cotangent, and of their product by row."""
    call = call.converted(torch.float64)
    weight, factor = call.keywords.get("weight"), call.keywords.get("avg_factor")
    reduction = call.keywords.get("reduction", "none")
    share = torch.ones(rows, dtype=torch.float64) if weight is None else weight.abs()
    if reduction == "mean":
        share = share / (max(rows, 1) if factor is None else factor)
    upstream = cotangent(torch.empty(rows if reduction == "none" else (), dtype=torch.float64)).abs()
    return share, upstream, share * upstream


class Promising:
    """What a test class is about."""

    op: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        """A call with weights and average factor on the device, where the operation has them."""
        raise NotImplementedError

    def on(self, device: torch.device, **settings: Any) -> Call:
        return self.make(**settings).to(device)


class Promises(Promising):
    """For every backend."""

    # --- values ---

    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_dtypes_of_results(self, dtype: torch.dtype, reduction: str, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device, dtype=dtype, rows=5, reduction=reduction)
            found = results(self.function, call)
        assert found["output"].dtype == compute_dtype(dtype)
        assert all(found[f"grad of {name}"].dtype == call.tensors[name].dtype for name in call.leaves)

    def test_twice_the_same_bits(self, backend: str) -> None:
        with running(backend) as device:
            first, second = (results(self.function, self.on(device, rows=3000)) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_permuted_rows(self, backend: str) -> None:
        order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
        with running(backend) as device:
            call = self.on(device, reduction="none")
            straight = call(self.function)
            moved = call.map(lambda tensor: tensor[order.to(device)] if tensor.dim() else tensor)(self.function)
        # Plain PyTorch computes the last elements of a tensor, which do not fill a vector, in another way.
        tolerance = 1e-6 if backend == "reference" else 0.0
        torch.testing.assert_close(moved, straight[order.to(device)], rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_scaled_loss_scales_the_gradients(self, dtype: torch.dtype, backend: str) -> None:
        with running(backend) as device:
            once, four_times = (
                results(self.function, self.on(device, dtype=dtype, reduction="sum"), scale=scale)
                for scale in (1.0, 4.0)
            )
        # A power of two is exact, but where a float16 gradient is subnormal.
        atol = 2.0**-22 if dtype == torch.float16 else 0.0
        for name in set(once) - {"output"}:
            torch.testing.assert_close(once[name] * 4, four_times[name], rtol=0, atol=atol)

    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    def test_no_rows(self, reduction: str, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device, rows=0, reduction=reduction)
            found = results(self.function, call)
        assert found["output"].shape == self.reference_of(call).shape
        assert float(found["output"].abs().sum()) == 0
        assert all(found[f"grad of {name}"].shape == call.tensors[name].shape for name in call.leaves)

    @pytest.mark.parametrize("factor", [0.0, torch.nan, torch.inf])
    def test_no_rows_and_any_average_factor(self, factor: float, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device, rows=0, reduction="mean")
            if "avg_factor" not in call.keywords:
                pytest.skip(f"{self.op} has no average factor")
            call.keywords["avg_factor"] = torch.tensor(factor, device=device)
            found = results(self.function, call)
        assert found["output"].shape == () and float(found["output"]) == 0
        assert all(found[f"grad of {name}"].shape == call.tensors[name].shape for name in call.leaves)

    def reference_of(self, call: Call) -> Tensor:
        return call.converted(torch.float32)(self.reference)

    # --- memory ---

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    def test_allocations_are_filled(self, reduction: str, backend: str) -> None:
        """With every torch.empty full of NaN (outputs and partial sums), nothing of it comes through."""
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN
        try:
            assert torch.empty(3).isnan().all()
            with running(backend) as device:
                found = results(self.function, self.on(device, rows=700, reduction=reduction))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())

    def test_inputs_are_left_alone(self, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device)
            before = call.map(torch.clone)
            found = results(self.function, call)
        inputs = [*call.tensors.values(), *(v for v in call.keywords.values() if isinstance(v, Tensor))]
        copies = [*before.tensors.values(), *(v for v in before.keywords.values() if isinstance(v, Tensor))]
        assert all(torch.equal(one, other) for one, other in zip(inputs, copies, strict=True))
        assert {t.data_ptr() for t in inputs}.isdisjoint({t.data_ptr() for t in found.values()})

    # --- autograd ---

    def test_each_gradient_alone(self, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device)
            every = results(self.function, call)
            for name in call.leaves:
                alone = replace(call.map(torch.Tensor.detach), leaves=(name,))
                found = results(self.function, alone)
                assert torch.equal(found[f"grad of {name}"], every[f"grad of {name}"])

    def test_backward_runs_on_the_backend_of_its_forward(self, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device)
            want = results(self.function, call)
            out = call(self.function)
        with gflv2.use_backend("reference"):
            found = torch.autograd.grad(out, call.trained(), cotangent(out))
        assert all(torch.equal(a, b) for a, b in zip(found, list(want.values())[1:], strict=True))

    # --- torch.compile ---

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_full_graph_for_any_number_of_rows(self, reduction: str, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(self.function, fullgraph=True, backend="aot_eager", dynamic=True)
            for rows in (4, 6, 9):
                call = self.on(device, rows=rows, reduction=reduction)
                assert_same(results(compiled, call), results(self.function, call))


class KernelPromises(Promising):
    """For every backend but the reference."""

    def test_inductor(self, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(self.function, fullgraph=True, backend="inductor")
            call = self.on(device)
            assert_same(results(compiled, call), results(self.function, call))


def assert_same(found: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """Equal up to what the definition's own operations may differ by when they are compiled."""
    assert found.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)


def check_parity(
    op: str,
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    call: Call,
    magnitudes: Callable[[Call], dict[str, Tensor]],
    backend: str,
    context: object,
) -> None:
    """A backend against the definition."""
    with running(backend) as device:
        found = results(function, call.to(device))
    exact, eager = (results(reference, call.converted(dtype)) for dtype in (torch.float64, torch.float32))
    assert_parity(op, found, exact, eager, magnitudes(call.map(torch.Tensor.detach)), context=context)
