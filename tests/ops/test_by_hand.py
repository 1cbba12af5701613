"""Tensors in another dtype, or with other strides, than the kernels take: read as what they are, or refused.

They come from registered operations called by hand, and from hooks on the tensors saved for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops import calls
from tests.ops.under_test import backends_of, running

# Triton's kernels know the dtypes of their arguments.
CASES = [
    (op, backend)
    for op in calls.operations()
    for backend in backends_of(op, kernels_only=True)
    if backend in ("cpu", "simt")
]
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Recorder(TorchDispatchMode):
    """Keeps the calls of registered operations, their tensors too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001
        if str(function).startswith("gflv2."):
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def wider(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int32)


def apart(tensor: Tensor) -> Tensor:
    """Equal, with numbers between its own ones."""
    return torch.stack([tensor, tensor + 1], -1)[..., 0]


def variations(arguments: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> Iterator[tuple[Any, ...]]:
    flat, structure = pytree.tree_flatten(arguments)
    for place, item in enumerate(flat):
        if isinstance(item, Tensor):
            yield pytree.tree_unflatten([*flat[:place], change(item), *flat[place + 1 :]], structure)


@pytest.mark.parametrize("change", [wider, apart], ids=["wider", "apart"])
@pytest.mark.parametrize(("op", "backend"), CASES)
def test_read_as_what_it_is_or_refused(op: str, backend: str, change: Callable[[Tensor], Tensor]) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        with Recorder() as recorder:
            result = calls.function(op)(**made)
            if calls.leaves(made):
                calls.gradients(result, made)
        assert recorder.calls
        right = 0
        for function, arguments in recorder.calls:
            with torch.no_grad():
                want = calls.tensors(function(*arguments))
                for number, varied in enumerate(variations(arguments, change)):
                    try:
                        found = calls.tensors(function(*varied))
                    except (ValueError, TypeError, RuntimeError):
                        continue
                    right += 1
                    for a, b in zip(found, want, strict=True):
                        close = torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4)
                        assert close, f"{function}: tensor {number} is misread"
        assert right > 0


@pytest.mark.parametrize(("op", "backend"), [case for case in CASES if case[0] in calls.DIFFERENTIABLE])
def test_what_a_hook_gives_back(op: str, backend: str) -> None:
    with running(backend) as device:
        made = calls.arguments(op, device)
        want = calls.gradients(calls.function(op)(**made), made)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, apart):
            found = calls.gradients(calls.function(op)(**made), made)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
