"""What holds of every operation alike, on every backend, beside its numbers: autograd, errors, memory, modes.

An operation or a backend that is registered is tested here without another line, but for its call in ``calls``.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gflv2.ops import backends, native
from tests.ops import calls
from tests.ops.under_test import INTERPRETED, backends_of, running

# The emulation shares its host side with cpu and cuda, whose tests these are.
EVERY = [(op, name) for op in calls.operations() for name in backends_of(op) if name != "simt"]
KERNELS = [(op, name) for op, name in EVERY if name != "reference"]
WITH_GRADIENT = [(op, name) for op, name in EVERY if op in calls.DIFFERENTIABLE]
KERNELS_WITH_GRADIENT = [(op, name) for op, name in KERNELS if op in calls.DIFFERENTIABLE]


def _quick(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """For what has nothing to do with a kernel's inside: not in the slow interpreter, which takes no other backend."""
    return [(op, "reference") for op, _ in pairs] if INTERPRETED else pairs


each_operation = pytest.mark.parametrize(("op", "backend"), EVERY)
each_call = pytest.mark.parametrize(("op", "backend"), _quick(EVERY))
each_kernel = pytest.mark.parametrize(("op", "backend"), KERNELS)
each_kernel_call = pytest.mark.parametrize(("op", "backend"), _quick(KERNELS))
each_gradient = pytest.mark.parametrize(("op", "backend"), _quick(WITH_GRADIENT))
each_kernel_gradient = pytest.mark.parametrize(("op", "backend"), KERNELS_WITH_GRADIENT)


def assert_same(found: Any, want: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    found, want = calls.tensors(found), calls.tensors(want)
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def run(op: str, device: torch.device) -> tuple[Any, list[Tensor]]:
    """Result and gradients of the operation's call."""
    made = calls.arguments(op, device)
    result = calls.function(op)(**made)
    found = calls.gradients(result, made) if op in calls.DIFFERENTIABLE else []
    return result, [gradient for gradient in found if gradient is not None]


@each_operation
def test_full_graph(op: str, backend: str) -> None:
    with running(backend) as device:
        torch._dynamo.reset()
        plain, want = run(op, device)
        made = calls.arguments(op, device)
        result = torch.compile(calls.function(op), fullgraph=True, backend="aot_eager")(**made)
        found = calls.gradients(result, made) if op in calls.DIFFERENTIABLE else []
    assert_same(result, plain, rtol=1e-6, atol=1e-6)
    assert_same([gradient for gradient in found if gradient is not None], want, rtol=1e-6, atol=1e-6)


@each_call
def test_twice_the_same_bits(op: str, backend: str) -> None:
    with running(backend) as device:
        assert_same(run(op, device), run(op, device))


@each_operation
def test_results_and_gradients_are_memory_of_their_own(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        before = [tensor.detach().clone() for tensor in calls.tensors(made)]
        result = calls.function(op)(**made)
        found = calls.gradients(result, made) if op in calls.DIFFERENTIABLE else []
    assert_same(calls.tensors(made), before)
    inputs = {tensor.untyped_storage().data_ptr() for tensor in calls.tensors(made) if tensor.numel()}
    if op == "gfl_targets":  # hands the assignment on
        inputs -= {tensor.untyped_storage().data_ptr() for tensor in made["assignment"]}
    for tensor in calls.tensors([result, found]):
        assert tensor.untyped_storage().data_ptr() not in inputs


@each_gradient
def test_a_result_may_be_changed_in_place(op: str, backend: str) -> None:
    """As `total = losses.qfl; total += losses.giou` does it."""
    with running(backend) as device:
        made = calls.arguments(op, device)
        plain = [result * 2 + 1 for result in calls.differentiable(calls.function(op)(**made))]
        want = torch.autograd.grad(sum(value.sum() for value in plain), calls.leaves(made), allow_unused=True)
        found = calls.differentiable(calls.function(op)(**made))
        for result in found:
            result *= 2
            result += 1
        assert_same(found, plain)
        gradients = torch.autograd.grad(sum(value.sum() for value in found), calls.leaves(made), allow_unused=True)
        assert_same([g for g in gradients if g is not None], [g for g in want if g is not None])


@each_call
def test_inference_mode(op: str, backend: str) -> None:
    with running(backend) as device:
        plain, _ = run(op, device)
        made = calls.arguments(op, device)
        with torch.inference_mode():
            found = calls.function(op)(**made)
    assert not calls.differentiable(found)
    assert_same([tensor.clone() for tensor in calls.tensors(found)], [t.detach() for t in calls.tensors(plain)])


@each_kernel_call
def test_autocast_changes_nothing(op: str, backend: str) -> None:
    with running(backend) as device:
        plain = run(op, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            found = run(op, device)
    assert_same(found, plain)


@each_gradient
def test_backward_twice_over_a_retained_graph(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        result = calls.function(op)(**made)
        first = calls.gradients(result, made, retain_graph=True)
        assert_same(calls.gradients(result, made), first)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in first)


@each_gradient
def test_activation_checkpointing(op: str, backend: str) -> None:
    with running(backend) as device:
        plain = run(op, device)
        made = calls.arguments(op, device)
        result = torch.utils.checkpoint.checkpoint(lambda: calls.function(op)(**made), use_reentrant=False)
        found = [gradient for gradient in calls.gradients(result, made) if gradient is not None]
    assert_same((result, found), plain)


@each_gradient
def test_upstream_gradient_of_any_strides(op: str, backend: str) -> None:
    """Expanded from one number, and with gaps between its elements."""
    with running(backend) as device:
        made = calls.arguments(op, device)
        outputs = calls.differentiable(calls.function(op)(**made))
        every = []
        for form in (
            lambda out: torch.ones_like(out),
            lambda out: out.new_ones(()).expand(out.shape),
            lambda out: torch.stack([torch.ones_like(out), torch.full_like(out, 9)], dim=-1)[..., 0],
        ):
            upstream = [form(out.detach()) for out in outputs]
            found = torch.autograd.grad(outputs, calls.leaves(made), upstream, allow_unused=True, retain_graph=True)
            every.append([gradient for gradient in found if gradient is not None])
    assert_same(every[1], every[0])
    assert_same(every[2], every[0])


# These run another operation (first), which its errors name.
HOSTS = {"fgl": "dfl", "ddf": "distribution_kl", "decode": "dgqp", "gfl_targets": "dgqp"}


@each_kernel_gradient
@pytest.mark.filterwarnings("ignore:Using backward")
def test_double_backward_is_refused(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        with pytest.raises(RuntimeError, match=f"^{HOSTS.get(op, op)}: double backward.*use_backend"):
            calls.gradients(calls.function(op)(**made), made, create_graph=True)


@each_kernel
def test_vmap_is_refused(op: str, backend: str) -> None:
    with running(backend) as device:
        made = pytree.tree_map_only(Tensor, Tensor.detach, calls.arguments(op, device))
        flat, structure = pytree.tree_flatten(made)
        places = [place for place, item in enumerate(flat) if isinstance(item, Tensor)]

        def call(*stacked: Tensor) -> Any:
            items = list(flat)
            for place, tensor in zip(places, stacked, strict=True):
                items[place] = tensor
            return tuple(calls.tensors(calls.function(op)(**pytree.tree_unflatten(items, structure))))

        text = f"^{HOSTS.get(op, op)}: vmap is not supported by the fused kernels.*use_backend"
        with pytest.raises(RuntimeError, match=text):
            torch.vmap(call)(*(torch.stack([flat[place]] * 2) for place in places))


def assert_refused(op: str, name: str, made: calls.Arguments, got: str) -> None:
    """The error names an argument of the call (the changed one, or one that no longer fits it), and what came."""
    with pytest.raises((ValueError, TypeError)) as caught:
        calls.function(op)(**made)
    message = str(caught.value)
    named = message.split(":")[0].split("[")[0].split(".")[0]
    assert named in made or name in message, f"{op}({name}=…): {message}"
    assert "expected" in message and "got" in message, f"{op}({name}=…): {message}"
    assert got in message, f"{op}({name}=…): {message}"


@each_call
def test_mixed_devices_are_refused(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        for name, changed in calls.variations(made, lambda tensor: tensor.detach().to("meta")):
            if backend != "reference":  # a first argument elsewhere is that device's call, which may be refused first
                with pytest.raises((ValueError, TypeError, backends.BackendError)):
                    calls.function(op)(**changed)
            if changed[name] is not calls.tensors(changed)[0]:
                assert_refused(op, name, changed, "meta")


@each_call
def test_wrong_dtypes_are_refused(op: str, backend: str) -> None:
    with running(backend) as device:
        for name, changed in calls.variations(
            calls.arguments(op, device), lambda tensor: tensor.detach().to(torch.complex64)
        ):
            assert_refused(op, name, changed, "complex64")


@each_call
def test_wrong_shapes_are_refused(op: str, backend: str) -> None:
    with running(backend) as device:
        for name, changed in calls.variations(
            calls.arguments(op, device), lambda tensor: tensor.detach()[None, None, None]
        ):
            assert_refused(op, name, changed, "(1, 1, 1")


@pytest.mark.parametrize("op", [op for op, name in KERNELS if name == "cpu"])
class TestWorkers:
    """DataLoader workers are forked, and OpenMP's threads do not come with them."""

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_forked_after_openmp_ran(self, op: str) -> None:
        if native.unavailable("cpu") is not None:
            pytest.skip(str(native.unavailable("cpu")))
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            with running("cpu"):
                # Enough work for a second thread in the parent.
                torch.ops.gflv2.integral([torch.randn(4, 68, 64, 64)], torch.arange(17.0), *[None] * 3, [], 0.0, "cpu")
                want = _Calls(op)[0]
                loader = torch.utils.data.DataLoader(
                    _Calls(op), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
                )
                for found in loader:
                    assert_same(found, want)
        finally:
            torch.set_num_threads(before)


class _Calls(torch.utils.data.Dataset):
    """Items are results of an operation's call."""

    def __init__(self, op: str) -> None:
        self.op = op

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        return [tensor.detach() for tensor in calls.tensors(calls.function(self.op)(**calls.arguments(self.op)))]
